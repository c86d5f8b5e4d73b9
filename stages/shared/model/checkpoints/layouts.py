"""Whose checkpoint it is: recognised by the names of its tensors, and arranged as open_clip's model wants them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from torch import Tensor

from stages.contract.errors import WeightsError
from stages.shared.model.checkpoints import from_transformers

OPENAI: Final = "OpenAI's CLIP"
OPEN_CLIP: Final = "open_clip"

_OPENAI_ONLY: Final = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Tensors that only OpenAI's own files have."""

_MARKS: Final = {
    from_transformers.CLIP: ("visual_projection.weight", "text_projection.weight", "vision_model.", "text_model."),
    from_transformers.SIGLIP: ("vision_model.head.probe", "text_model.head.weight"),
    OPENAI: ("input_resolution", "visual.", "token_embedding.weight"),
    OPEN_CLIP: ("visual.", "token_embedding.weight"),
}
"""Layout -> names, or with a dot at the end beginnings of names, that all have to be there. The first that fits counts.
A custom text tower of open_clip has its embedding at `text.token_embedding.weight` or below `text.transformer.`."""

_TOWERS_ALONE: Final = {
    "vision_model.": "an image tower of transformers without a text tower",
    "text_model.": "a text tower of transformers without an image tower",
    "visual.": "an image tower without a text tower",
    "base_model.model.": "an adapter (PEFT), which has to be merged into its model first (merge_and_unload)",
    "image_encoder.": "Apple's own MobileCLIP, which open_clip's tags have in open_clip's layout",
    "qformer.": "a BLIP-2",
    "unet.": "a diffusion model",
}
"""Beginning of names -> what they belong to, where no layout fits."""


def recognise(names: Collection[str], path: object, key: str = "model.weights") -> str:
    """The layout of a checkpoint.

    Args:
        names: of its tensors.
        path: of the file, for the message.
        key: of the configuration that names the file, for the message.

    Raises:
        WeightsError: no layout fits; the message names what was found and what is expected.
    """

    def has(mark: str) -> bool:
        if mark == "token_embedding.weight":
            return mark in names or any(name.startswith("text.") for name in names)
        return any(name.startswith(mark) for name in names) if mark.endswith(".") else mark in names

    for layout, marks in _MARKS.items():
        if all(map(has, marks)):
            return layout
    found = next((what for mark, what in _TOWERS_ALONE.items() if has(mark)), None)
    if found is None:
        shown = ", ".join(sorted(names)[:3])
        found = f"tensors such as {shown}" if names else "no tensors"
    raise WeightsError(
        f"{key}: {path} is no CLIP that is known: found {found}; expected the tensors of {', '.join(_MARKS)}"
    )


def arranged(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The tensors as open_clip's model wants them, without what only the layout's own files have."""
    if layout in (from_transformers.CLIP, from_transformers.SIGLIP):
        return from_transformers.renamed(state, layout)
    return {name: value for name, value in state.items() if layout != OPENAI or name not in _OPENAI_ONLY}
