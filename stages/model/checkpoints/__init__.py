"""Checkpoints on disk: their layouts, their settings and their tensors. Nothing in them is run."""
