"""Dual encoders of `transformers` that open_clip has no architecture for, and why others are refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from phrasebox.stages.contract.values import Json

_HALF: Final[Json] = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
_PLAIN: Final[Json] = {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DualEncoderKind:
    """A kind of dual encoder.

    Attributes:
        classes: Beginning of the names of its classes in transformers, as in `Tipsv2Model`.
        most_tokens: Tokens of the longest text that it was trained with, where it has more
            positions; None where its `config.json` has as many.
        skips_positions: Whether positions of words begin behind that of padding.
        needs_end: Whether the token that ends a text makes its embedding.
        counts_padding: Whether the embedding of a text depends on the tokens that fill it up.
        lower_case: Whether it was trained on texts without capitals, which its tokenizer need not know.
        images: open_clip's `preprocess_cfg` without a `preprocessor_config.json`.
    """

    classes: str
    most_tokens: int | None = None
    skips_positions: bool = False
    needs_end: bool = False
    counts_padding: bool = False
    lower_case: bool = False
    images: Json = field(default_factory=dict)

    @property
    def layout(self) -> str:
        """Name of the layout of its weights."""
        return f"transformers {self.classes}Model"


DUAL_ENCODERS: Final[dict[str, DualEncoderKind]] = {
    "metaclip_2": DualEncoderKind(classes="MetaClip2", needs_end=True),
    "siglip2": DualEncoderKind(classes="Siglip2", counts_padding=True, lower_case=True, images=_HALF),
    "tipsv2": DualEncoderKind(classes="Tipsv2", images=_PLAIN),
    # 512 positions of BERT. The authors' `cn_clip.clip.tokenize` says that all of their models use 52.
    "chinese_clip": DualEncoderKind(classes="ChineseCLIP", most_tokens=52),
    # 512 positions of XLM-R. Its teacher is CLIP, with 77, to which code around the authors' processor cuts.
    "altclip": DualEncoderKind(classes="AltCLIP", most_tokens=77, skips_positions=True),
}
"""`model_type` of a `config.json` -> the kind. Both vision towers of SigLIP 2 exist: fixed sizes are `siglip`."""

_REMOTE_CODE: Final = (
    "its code comes with its weights and not with transformers, and no code of a checkpoint is run"
)
_FUSED: Final = (
    "images and texts meet inside the network, so that there are no embeddings of each to compare"
)

REFUSED: Final[dict[str, str]] = {
    "align": "its image tower is an EfficientNet of transformers, whose layers are not known here",
    "blip": _FUSED,
    "blip-2": _FUSED,
    "bridgetower": _FUSED,
    "clipseg": "its decoder makes masks itself; the CLIP inside it is openai/clip-vit-base-patch16",
    "clvp": "it compares speech with texts",
    "flava": _FUSED,
    "groupvit": "its image tower groups patches, so that tokens have no places",
    "vilt": _FUSED,
    "vision-text-dual-encoder": "its towers may be any two models",
    "xclip": "it takes videos",
    "fgclip2": _REMOTE_CODE,
    "fg-clip": _REMOTE_CODE,
    "jina_clip": _REMOTE_CODE,
}
"""`model_type` of other models that compare images with texts -> why it is refused."""

_NOT_READ: Final = ("auto_map", "quantization_config", "attn_implementation", "dtype", "torch_dtype")


def kind_of(settings: Json) -> DualEncoderKind | None:
    """Return the kind of the dual encoder that a `config.json` describes; None for another model."""
    return DUAL_ENCODERS.get(str(settings.get("model_type")))


def plain_settings(settings: Any) -> Any:
    """Return a `config.json` without the keys that make transformers load code, kernels or another precision."""
    if not isinstance(settings, dict):
        return settings
    return {
        key: plain_settings(value)
        for key, value in settings.items()
        if key not in _NOT_READ and not str(key).startswith("_")
    }
