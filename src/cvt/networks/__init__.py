"""Backbones, module surgery and complexity of a CvT; baselines and the supernet."""
