"""What the network looks at: attention, rollout, Grad-CAM and the tokens of every stage."""
