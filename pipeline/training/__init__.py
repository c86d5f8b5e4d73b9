"""How the embedded model was made: `python -m pipeline.training run`, then `export`; needs torch >= 2.9."""
