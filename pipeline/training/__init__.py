"""How the two bundled models were made: `python -m pipeline.training`; needs torch >= 2.9. It is not in the wheel."""
