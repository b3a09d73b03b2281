"""The network as a file that runs without PyTorch, and how fast it runs."""
