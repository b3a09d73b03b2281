"""Check a dataset before training: unreadable images, duplicates, leaks."""
