"""Predictions for images, one or millions."""
