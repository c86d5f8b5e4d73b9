"""What a source of regions is: the stage in the place of the model, which fills `Record.regions` itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from stages.contract.records import Record
from stages.contract.stage import Device, Stage
from stages.shared.model.config import ModelConfig
from stages.sources.config import RegionSourceConfig

if TYPE_CHECKING:
    from stages.shared.model.clip import ClipModel

ConfigT = TypeVar("ConfigT", bound=RegionSourceConfig)


class RegionSource(Stage, Generic[ConfigT]):
    """Fills `regions`, and appends to `phrases` what a region is called and no caption says.

    Records arrive with phrases and with pixels of the size that `canvas` asks for, and leave without pixels. A region's
    `group` is None: `stages.regions.link.LinkStage` numbers the things. What a record gets depends on nothing but the
    record. The boxes of a record lie inside its image and are those of their masks.

    Args:
        config: The settings; files that they name are read in `setup`.
        model: Which model, for sources that have one.
        loaded: One in memory, in place of the one that `model` names.

    Attributes:
        config_type: The pydantic model of its settings, with a literal `kind`.
        needs_model: Whether it loads a CLIP model.
        regions_come_from: One sentence for the dataset's card.
        score_means: What the score of a region is, for people.
    """

    name: ClassVar[str] = "sources"
    config_type: ClassVar[type[RegionSourceConfig]]
    needs_model: ClassVar[bool] = True
    regions_come_from: ClassVar[str]
    score_means: ClassVar[str]

    def __init__(self, config: ConfigT, model: ModelConfig, loaded: ClipModel | None = None) -> None:
        # Workers have another current folder.
        paths = {name: value.expanduser().absolute() for name, value in config if isinstance(value, Path)}
        self.config = config.model_copy(update=paths)
        self.model = model
        self._loaded = loaded

    def canvas(self) -> dict[str, Any]:
        """The settings of the prepare stage that make the pixels which this source looks at."""
        return {"mode": "square", "size_px": 8}  # the fewest that it can make: the source looks at none

    def on_device(self, device: Device) -> Self:
        """Return the same source, not set up, whose model computes on a device or raises."""
        return type(self)(self.config, self.model.model_copy(update={"device": device}), self._loaded)

    def check(self) -> None:
        """Look at the files that the settings name, before any work.

        Raises:
            ConfigError: A setting cannot be used.
            InputError: A file cannot be read.
        """

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`."""
        out = [record if record.pixels is None else replace(record, pixels=None) for record in batch]
        todo = [number for number, record in enumerate(batch) if record.error is None]
        for number, answer in zip(todo, self.with_regions([batch[number] for number in todo]), strict=True):
            out[number] = replace(answer, pixels=None)
        return out

    @abstractmethod
    def with_regions(self, records: Sequence[Record]) -> list[Record]:
        """Answer each of the records, none of which has an error."""
