"""How the embedded model was made: `python -m stages.model.train run`, then `export`; needs torch >= 2.9."""
