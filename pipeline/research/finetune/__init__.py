"""Fine-tune a CLIP model on a dataset, for better features of its patches."""
