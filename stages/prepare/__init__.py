"""From encoded images to the model's input size."""

from stages.prepare.stage import Config, PrepareStage

__all__ = ["Config", "PrepareStage"]
