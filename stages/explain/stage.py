"""STEP 2: heat maps for all phrases of a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from stages.base import Stage
from stages.clip.config import ModelConfig
from stages.explain.config import ExplainerConfig, GradEclipConfig
from stages.explain.contrast import contrasted
from stages.records import HeatMap, Record


class Config(BaseModel):
    """Model and explainer of one worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig = ModelConfig()
    explainer: ExplainerConfig = GradEclipConfig()

    keep_pixels: bool = False
    """Leave the pixels in the record, for a later stage that looks at colours."""


BATCH_SIZES: Final = {"cpu": 8, "cuda": 64}
"""Images of one forward pass by device. On 2 CPU cores larger batches are no faster."""


class ExplainStage(Stage):
    """Fills `heat_maps`, one per unique phrase text. Images of one size share a batch."""

    name: ClassVar[str] = "explain"

    def __init__(self, config: Config) -> None:
        self.config = config

    def setup(self) -> None:
        """Load the model. Raises WeightsError, ConfigError or ResourceError."""
        # torch and open_clip take seconds to import; only the workers that need them pay for it.
        from stages.clip.open_clip import load  # noqa: PLC0415
        from stages.explain.explainers import EXPLAINERS  # noqa: PLC0415

        model = load(self.config.model, pack=True)
        self._batch_size = self.config.model.batch_size or BATCH_SIZES[model.device.type]
        self._explainer = EXPLAINERS[self.config.explainer.kind](self.config.explainer, model)

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`. Pixels are dropped unless a later stage needs them: they are the bulk of a record."""
        keep = self.config.keep_pixels
        out = [record if keep or record.pixels is None else replace(record, pixels=None) for record in batch]
        for members in self._same_size(batch):
            for start in range(0, len(members), self._batch_size):
                part = members[start : start + self._batch_size]
                for index, maps in zip(part, self._explain([batch[i] for i in part]), strict=True):
                    out[index] = replace(out[index], heat_maps=tuple(maps))
        return out

    def teardown(self) -> None:
        """Let the model go."""
        del self._explainer

    def _same_size(self, batch: Sequence[Record]) -> Iterator[list[int]]:
        """Positions of the records to explain, grouped by the size of their pixels, in order."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, record in enumerate(batch):
            if record.error is None and record.phrases and record.pixels is not None:
                groups.setdefault(record.pixels.rgb.shape, []).append(index)
        yield from groups.values()

    def _explain(self, records: Sequence[Record]) -> list[list[HeatMap]]:
        """Heat maps of at most `batch_size` records with pixels of one size."""
        rgb = [record.pixels.rgb for record in records if record.pixels is not None]
        phrases = [list(dict.fromkeys(phrase.text for phrase in record.phrases)) for record in records]
        missing = self._batch_size - len(records)
        pixels = np.stack(rgb + [np.zeros_like(rgb[0])] * missing)
        maps = self._explainer.explain(pixels, phrases + [[]] * missing)[: len(records)]
        return [contrasted(each, self.config.explainer.settings.contrast) for each in maps]
