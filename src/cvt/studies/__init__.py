"""What compares and searches."""
