"""The model that contracts are checked with."""

from __future__ import annotations

from typing import Any, NamedTuple

from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import InputSpec, ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.model.module import module_of
from phrasebox.stages.model.tokenizer import tokenizer_of


class OpenClipModel(NamedTuple):
    """A model of open_clip, its tokenizer, and the size and normalisation of its images."""

    module: Any
    tokenizer: Any
    spec: InputSpec

    def clip(self) -> ClipModel:
        """Return the model as explainers take it."""
        return from_open_clip(self.module, self.tokenizer, self.spec)


def demo_model() -> OpenClipModel:
    """Return the bundled model `demo`: a small vision transformer with a class token."""
    description = describe(ModelConfig(name="demo"))
    return OpenClipModel(module_of(description), tokenizer_of(description), description.input)
