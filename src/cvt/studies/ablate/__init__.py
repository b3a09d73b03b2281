"""Ablations: the claims of the paper, tested on several seeds, with intervals and verdicts."""
