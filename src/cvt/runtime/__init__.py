"""Running an exported model: numpy and one runtime, no torch."""
