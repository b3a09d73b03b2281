"""Dataset sources, one file each: what `data.name` chooses from."""
