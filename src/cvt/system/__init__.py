"""The machine, files, optional packages and what is read from them."""
