"""Other origins of regions than heat maps: a stage in the place of the model that fills `Record.regions` itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from phrasebox.stages.contract.kinds import KindTable, with_absolute_files
from phrasebox.stages.contract.masks import rle_area_px, rle_box_xywh_px
from phrasebox.stages.contract.records import Record, Region, Rle
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.config import ModelConfig, ModelDescription

HEAT_MAPS: Final = "heat_maps"
"""The kind without a stage of its own: `explain` computes heat maps, by any method, and
`regions` cuts them."""

NOT_FINITE: Final = "the embeddings of its boxes are not finite, so nothing is known of its phrases"
"""The note of an image for which the model of a source gives no numbers."""


class OtherModel(NamedTuple):
    """The model of a source: its name for people, and what identifies its weights."""

    name: str
    fingerprint: str


def region_of_mask(phrase_index: int, mask: Rle, score: float, similarity: float = 0.0) -> Region:
    """Return a region with the box of its mask; a similarity of 0 is not measured."""
    return Region(
        phrase_index=phrase_index,
        box_xywh_px=rle_box_xywh_px(mask),
        mask=mask,
        area_px=rle_area_px(mask),
        score=score,
        similarity=similarity,
    )


class RegionSourceConfig(BaseModel):
    """Settings of a source. Each source derives a model of its own with `kind: Literal["x"] = "x"`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(description="Origin of the regions: `heat_maps` or another name in `SOURCES`.")

    @property
    def makes_heat_maps(self) -> bool:
        """Whether the run makes heat maps and cuts regions from them, as without a source of its own."""
        return False

    @property
    def concept_count(self) -> int | None:
        """The number of concepts of a pool that is known; None without one."""
        return None

    @property
    def pool_to_parse(self) -> int | None:
        """The most concepts of a pool that a run has yet to parse from its captions; None if it needs none."""
        return None

    def with_pool(self, concepts: Mapping[str, str]) -> Self:
        """Return the settings with a pool: texts with their head nouns. Raise ValueError if they take none."""
        raise ValueError(f"{self.kind} takes no pool")

    def score_settings(self) -> Json:
        """Return the settings that a calibration of its scores depends on, as plain values."""
        return self.model_dump(mode="json")


class HeatMapSource(RegionSourceConfig):
    """Regions are cut from heat maps, as `explain` and `regions` say."""

    kind: Literal["heat_maps"] = "heat_maps"

    @property
    def makes_heat_maps(self) -> bool:
        """See `RegionSourceConfig.makes_heat_maps`."""
        return True


class HeatMapRegions:
    """The entry of `SOURCES` for heat maps: settings, and no stage."""

    config_type = HeatMapSource


ConfigT = TypeVar("ConfigT", bound=RegionSourceConfig)


class RegionSource(Stage, Generic[ConfigT]):
    """Fills `regions`, and appends to `phrases` the concepts of a pool that no caption says.

    Records arrive with phrases and with pixels of the size that `canvas` states, and leave
    without pixels. A region's `group` is None: `phrasebox.stages.sources.source_stage.SourceRegionsStage` numbers the
    objects. Regions depend on their record alone. The boxes of a record lie inside its image
    and are those of their masks.

    Files that the settings name are read in `setup`. `description` describes the run's CLIP model,
    for a source that needs it, and `model` says how the source computes.

    Attributes:
        config_type: Class of the settings, with a literal `kind`.
        needs_model: Whether `setup` loads the run's CLIP model.
        looks_for_phrases: Whether it looks for any phrase in any image, so that it can be asked
            for phrases of other images; then its scores can be calibrated.
        regions_come_from: Origin of the regions, for the dataset's card.
        score_means: Meaning of a region's score, for people.
    """

    name = "sources"
    config_type: ClassVar[type[RegionSourceConfig]]
    needs_model: ClassVar[bool] = False
    looks_for_phrases: ClassVar[bool] = False
    regions_come_from: ClassVar[str]
    score_means: ClassVar[str]

    def __init__(
        self, config: ConfigT, model: ModelConfig, description: ModelDescription | None = None
    ) -> None:
        self.config = with_absolute_files(config)
        self.model = model
        self.description = description

    def canvas(self) -> Json:
        """Return the settings of the prepare stage for the pixels of this source."""
        return {"mode": "square", "size_px": 8}  # the smallest image: the source reads no pixels

    def computing(self, **settings: str) -> Self:
        """See `Stage.computing`."""
        return type(self)(self.config, self.model.model_copy(update=settings), self.description)

    def with_description(self, description: ModelDescription | None) -> Self:
        """Return the same source, which loads the described model."""
        return type(self)(self.config, self.model, description)

    def check(self) -> None:
        """Raise ConfigError for a setting that cannot be used, and InputError for a file that cannot be read."""

    def identify(self) -> OtherModel | None:
        """Return the model of a source whose model is not the run's CLIP; None for other sources.

        Raise ConfigError or WeightsError if that model cannot be loaded.
        """
        return None

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`."""
        sound = iter(self.with_regions([record for record in batch if record.error is None]))
        return [replace(record if record.error else next(sound), pixels=None) for record in batch]

    @abstractmethod
    def with_regions(self, records: Sequence[Record]) -> list[Record]:
        """Return the records with their regions. Only records without an error come here."""


SOURCES: Final[KindTable[Any]] = KindTable("phrasebox.sources", default=HeatMapSource)
"""Every value of `source.kind`. All but `HEAT_MAPS` are a `RegionSource`."""

AnySourceConfig = Annotated[SerializeAsAny[RegionSourceConfig], BeforeValidator(SOURCES.config)]
"""The `source` section of a run."""
