"""The answer to "which model is this?", as everything that builds, loads or feeds the model takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.contract.values import Json
from stages.shared.model.config import InputSpec, TowerKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """Everything about a model but the numbers in its weights, see `describe`.

    Attributes:
        name: Name for people.
        architecture: open_clip's model configuration.
        siglip: Arguments of timm's `VisionTransformer`, and `norm_eps`, for the image tower of
            a SigLIP of any size, which open_clip cannot build. None for other models.
        input: The images that the model takes.
        vocabulary: A vocabulary file that the model brings, absolute; None for the tokenizer of
            `architecture`.
        described_by: Files that describe a checkpoint, for people; "" for a model with a
            configuration.
        tower: Kind of the image tower.
        weights: A file, or the index of several, absolute; None if open_clip downloads it.
        pretrained: open_clip's tag of the weights; None for a file.
        layout: Layout of the weights, see `layouts`; "" for a tag.
        is_bundled: Whether phrasebox brings the model. Another machine may have its files
            elsewhere.
        calibrations: Calibrations of scores that the model brings.
        fingerprint: Hash of architecture, input, vocabulary and weights.
    """

    name: str
    architecture: Json
    siglip: Json | None = None
    input: InputSpec
    vocabulary: Path | None = None
    described_by: str = ""
    tower: TowerKind = "class_token"
    weights: Path | None = None
    pretrained: str | None = None
    layout: str = ""
    is_bundled: bool = False
    calibrations: tuple[Path, ...] = ()
    fingerprint: str = ""

    @property
    def key(self) -> str:
        """Key of the configuration that names the weights, for errors."""
        return "model.checkpoint" if self.described_by else "model.weights"
