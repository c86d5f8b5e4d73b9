"""The folder of a dataset while a run writes it: refuse or go on, lock, checkpoint, manifest."""
