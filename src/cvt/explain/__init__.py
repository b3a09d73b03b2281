"""Explanations: attention, attention rollout, Grad-CAM and the tokens of every stage."""
