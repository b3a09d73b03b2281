"""Weights in and out: names, files, strict loading, and the directory of a trained model."""
