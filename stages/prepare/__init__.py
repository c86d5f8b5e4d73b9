"""From encoded images to the model's input size."""

from stages.prepare.stage import PrepareConfig, PrepareStage

__all__ = ["PrepareConfig", "PrepareStage"]
