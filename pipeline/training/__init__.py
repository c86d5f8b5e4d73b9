"""How the bundled model `demo` was made: `python -m pipeline.training`; needs torch >= 2.9. It is not in the wheel."""
