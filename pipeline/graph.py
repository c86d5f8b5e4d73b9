"""RunConfig -> reader and ordered stages: the one place where the order of the pipeline stands.

read -> phrases -> prepare -> explain -> regions -> write
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config import RunConfig
from stages.base import Stage
from stages.explain.stage import Config as ExplainStageConfig
from stages.explain.stage import ExplainStage
from stages.phrases.stage import PhrasesStage
from stages.prepare.stage import Config as PrepareConfig
from stages.prepare.stage import PrepareStage
from stages.read import Reader, make_reader
from stages.regions.stage import RegionsStage


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """What an engine runs.

    before    stages on CPUs before the model
    model     the stage that holds the model
    after     stages on CPUs after it; their records become rows
    """

    reader: Reader
    before: tuple[Stage, ...]
    model: ExplainStage
    after: tuple[Stage, ...]
    fingerprint: str

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order."""
        return (*self.before, self.model, *self.after)


def build_graph(config: RunConfig) -> Graph:
    """Check everything that can be checked before any work, and put the stages in order.

    Raises ConfigError, InputError or WeightsError.
    """
    # torch and open_clip take seconds to import: only a run needs them.
    from stages.clip.open_clip import describe, fingerprint, refuse_unsupported  # noqa: PLC0415

    description = describe(config.model)
    refuse_unsupported(description)
    canvas: dict[str, Any] = config.explain.canvas(description.input)
    prepare = PrepareConfig(**config.images.model_dump(), **canvas, keep_image_bytes=config.output.embed_images)
    return Graph(
        reader=make_reader(config.input),
        before=(PhrasesStage(config.phrases), PrepareStage(prepare)),
        model=ExplainStage(ExplainStageConfig(model=config.model, explainer=config.explain)),
        # Kept, because a row says why a map is empty.
        after=(RegionsStage(config.regions, keep_heat_maps=True),),
        fingerprint=fingerprint(description),
    )
