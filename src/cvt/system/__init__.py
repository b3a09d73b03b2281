"""Errors, files, the machine and its devices, optional packages, text, typed mappings."""
