"""Load, save, convert and download weights; the directory of a trained model."""
