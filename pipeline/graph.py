"""RunConfig -> reader and ordered stages: the one place where the order of the pipeline stands.

read -> phrases -> prepare -> explain -> regions -> write
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.differences import differences
from stages.contract.errors import ConfigError
from stages.contract.stage import Stage
from stages.explain.stage import ExplainStage, ExplainStageConfig
from stages.model.config import ModelConfig
from stages.phrases.stage import PhrasesStage
from stages.prepare.stage import Config as PrepareConfig
from stages.prepare.stage import PrepareStage
from stages.read import Reader, make_reader
from stages.regions.calibration import Calibration, read_calibration
from stages.regions.stage import RegionsStage


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """What an engine runs.

    before    stages on CPUs before the model
    model     the stage that holds the model
    after     stages on CPUs after it; their records become rows
    fingerprint  of the model
    calibration  SHA-256 of what the scores are calibrated with; None if they are not
    """

    reader: Reader
    before: tuple[Stage, ...]
    model: ExplainStage
    after: tuple[Stage, ...]
    fingerprint: str
    calibration: str | None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order."""
        return (*self.before, self.model, *self.after)


def build_graph(config: RunConfig) -> Graph:
    """Check everything that can be checked before any work, and put the stages in order.

    Raises ConfigError, InputError or WeightsError.
    """
    # torch and open_clip take seconds to import: only a run needs them.
    from stages.model.open_clip import describe, fingerprint, refuse_misfit, refuse_unsupported  # noqa: PLC0415

    description = describe(config.model)
    refuse_unsupported(description)
    refuse_misfit(description)
    canvas: dict[str, Any] = config.explain.canvas(description.input)
    prepare = PrepareConfig(**config.images.model_dump(), **canvas, keep_image_bytes=config.output.embed_images)
    explain = ExplainStageConfig(
        model=_absolute(config.model), explainer=config.explain, keep_pixels=config.regions.needs_pixels
    )
    identity = fingerprint(description)
    calibration = _calibration(config, identity, description.calibrations)
    return Graph(
        reader=make_reader(config.input),
        before=(PhrasesStage(config.phrases), PrepareStage(prepare)),
        model=ExplainStage(explain),
        # Kept, because a row says why a map is empty.
        after=(RegionsStage(config.regions, calibration, keep_heat_maps=True),),
        fingerprint=identity,
        calibration=None if calibration is None else sha256(calibration.to_json().encode()).hexdigest(),
    )


def _absolute(model: ModelConfig) -> ModelConfig:
    """The model with absolute paths: workers have another current folder."""
    paths = {"weights": model.weights, "config": model.config}
    return model.model_copy(
        update={name: path.expanduser().absolute() for name, path in paths.items() if path is not None}
    )


def calibration_basis(config: RunConfig, model_fingerprint: str) -> dict[str, Any]:
    """What a calibration is made with, and holds for; plain values."""
    basis = {
        "model": model_fingerprint,
        "explain": config.explain.decides_maps(),
        "regions": config.regions.model_dump(mode="json", exclude={"score", "calibration"}),
    }
    plain: dict[str, Any] = json.loads(json.dumps(basis))
    return plain


def _calibration(config: RunConfig, model_fingerprint: str, shipped: Sequence[Path]) -> Calibration | None:
    """The calibration that `regions.calibration` asks for.

    Raises ConfigError for a file that was made with other settings.
    """
    wanted = config.regions.calibration
    if wanted == "none":
        return None
    basis = calibration_basis(config, model_fingerprint)
    if wanted == "auto":
        fitting = (one for one in map(read_calibration, shipped) if one.made_with == basis)
        return next(fitting, None)
    calibration = read_calibration(Path(wanted))
    differing = list(differences(calibration.made_with, basis))
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        raise ConfigError(f"regions.calibration: {wanted} was made with other settings:\n{listed}")
    return calibration
