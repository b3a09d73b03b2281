"""Around the CvT: backbones, replaced modules, cost; beside it: baselines and the supernet."""
