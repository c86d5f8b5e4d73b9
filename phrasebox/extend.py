"""The names that a package needs to add kinds to phrasebox.

docs/how-to/extend.md has an example of each kind, and `phrasebox.testing` checks what a kind promises.
These names and their signatures change only with a note in the changelog, after one release in
which the old way works and warns. What is not listed here may change in any version.

Base classes of kinds, and of their settings:

Explainer           heat maps of phrases in images
ExplainerConfig     the section `explain` for a kind
RegionSource        regions of phrases without heat maps
RegionSourceConfig  the section `source` for a kind
Reader              an input of any form, in pieces
ReaderConfig        the section `input` for a kind
LinesReader         a `Reader` of files in which each line is a row
LinesConfig         the section `input` for such a kind
Exporter            files of a format
FormatConfig        the settings of a format
Recipe              the losses of a fine-tuning
RecipeConfig        the section `recipe` for a kind

What their methods take and return:

Maps                the maps of a batch of images, made by an explainer
Tower               the image side of the model, which an explainer looks at
Record              an image with its phrases, which a source gives its regions
Region              a part of an image that a phrase names
encode_mask         pixels -> the mask of a region
encode_box          a box of whole pixels -> its mask
whole_pixels        a box with fractions -> whole pixels within the image
region_of_mask      a mask -> the region with its box and area
Piece               a part of an input, which a reader plans and reads
Sample              a captioned image of an input
SkippedRow          a row of an input whose download had failed
ImageRef            the place of an image
ChosenSample        an image with the regions that an exporter writes
Student             the model that a recipe teaches
TrainingBatch       images, captions and regions of a step
RankGroup           the processes that train together
dense               images -> embeddings of their patches, which a recipe or an explainer looks at
caption_loss        CLIP's loss between images and captions

Faults:

RowFault            a fault of one row, which becomes the row's error
InputError          the input as a whole cannot be read
ConfigError         a setting that cannot be used
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phrasebox.pipeline.export.base import ChosenSample, Exporter, FormatConfig
    from phrasebox.pipeline.research.finetune.config import RecipeConfig
    from phrasebox.pipeline.research.finetune.material import TrainingBatch
    from phrasebox.pipeline.research.finetune.ranks import RankGroup
    from phrasebox.pipeline.research.finetune.recipe import Recipe, Student, caption_loss
    from phrasebox.stages.contract.errors import ConfigError, InputError, RowFault
    from phrasebox.stages.contract.geometry import whole_pixels
    from phrasebox.stages.contract.masks import encode_box, encode_mask
    from phrasebox.stages.contract.records import ImageRef, Record, Region, Sample
    from phrasebox.stages.explain.base import Explainer
    from phrasebox.stages.explain.config import ExplainerConfig
    from phrasebox.stages.explain.maps import Maps
    from phrasebox.stages.model.towers.dense import dense
    from phrasebox.stages.model.towers.tower import Tower
    from phrasebox.stages.read.base import Piece, Reader, ReaderConfig, SkippedRow
    from phrasebox.stages.read.lines import LinesConfig, LinesReader
    from phrasebox.stages.sources.source import RegionSource, RegionSourceConfig, region_of_mask

__all__ = [
    "ChosenSample",
    "ConfigError",
    "Explainer",
    "ExplainerConfig",
    "Exporter",
    "FormatConfig",
    "ImageRef",
    "InputError",
    "LinesConfig",
    "LinesReader",
    "Maps",
    "Piece",
    "RankGroup",
    "Reader",
    "ReaderConfig",
    "Recipe",
    "RecipeConfig",
    "Record",
    "Region",
    "RegionSource",
    "RegionSourceConfig",
    "RowFault",
    "Sample",
    "SkippedRow",
    "Student",
    "Tower",
    "TrainingBatch",
    "caption_loss",
    "dense",
    "encode_box",
    "encode_mask",
    "region_of_mask",
    "whole_pixels",
]

_PLACES = {
    "ChosenSample": "phrasebox.pipeline.export.base",
    "ConfigError": "phrasebox.stages.contract.errors",
    "Explainer": "phrasebox.stages.explain.base",
    "ExplainerConfig": "phrasebox.stages.explain.config",
    "Exporter": "phrasebox.pipeline.export.base",
    "FormatConfig": "phrasebox.pipeline.export.base",
    "ImageRef": "phrasebox.stages.contract.records",
    "InputError": "phrasebox.stages.contract.errors",
    "LinesConfig": "phrasebox.stages.read.lines",
    "LinesReader": "phrasebox.stages.read.lines",
    "Maps": "phrasebox.stages.explain.maps",
    "Piece": "phrasebox.stages.read.base",
    "RankGroup": "phrasebox.pipeline.research.finetune.ranks",
    "Reader": "phrasebox.stages.read.base",
    "ReaderConfig": "phrasebox.stages.read.base",
    "Recipe": "phrasebox.pipeline.research.finetune.recipe",
    "RecipeConfig": "phrasebox.pipeline.research.finetune.config",
    "Record": "phrasebox.stages.contract.records",
    "Region": "phrasebox.stages.contract.records",
    "RegionSource": "phrasebox.stages.sources.source",
    "RegionSourceConfig": "phrasebox.stages.sources.source",
    "RowFault": "phrasebox.stages.contract.errors",
    "Sample": "phrasebox.stages.contract.records",
    "SkippedRow": "phrasebox.stages.read.base",
    "Student": "phrasebox.pipeline.research.finetune.recipe",
    "Tower": "phrasebox.stages.model.towers.tower",
    "TrainingBatch": "phrasebox.pipeline.research.finetune.material",
    "caption_loss": "phrasebox.pipeline.research.finetune.recipe",
    "dense": "phrasebox.stages.model.towers.dense",
    "encode_box": "phrasebox.stages.contract.masks",
    "encode_mask": "phrasebox.stages.contract.masks",
    "region_of_mask": "phrasebox.stages.sources.source",
    "whole_pixels": "phrasebox.stages.contract.geometry",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is used: a run reads the settings of a kind without loading torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'phrasebox.extend' has no attribute {name!r}")
    member = getattr(import_module(_PLACES[name]), name)
    globals()[name] = member
    return member


def __dir__() -> list[str]:
    return __all__
