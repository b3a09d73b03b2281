"""Training: the recipe, the optimiser, the engine, the state on disk, the log and the loop."""
