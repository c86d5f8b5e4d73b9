"""Checkpoints on disk: whose they are, what they say of the model, and their tensors, of which nothing is run."""
