"""Ablations and architecture search."""
