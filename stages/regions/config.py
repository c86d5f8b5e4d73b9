"""The settings of the regions stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from stages.regions.score import SCORES

Rule = Literal["mean", "otsu", "fixed", "quantile", "fitted"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Patches = Annotated[float, Field(ge=0.0, le=4.0)]


class RegionsConfig(BaseModel):
    """How heat maps become regions.

    Lengths are in patches (cells of the heat map) and areas are shares of the image, so that one configuration fits
    images of any size. "Measured" refers to drawn scenes and configs/README.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Rule = "otsu"
    """Where the map is cut. `mean`: above its mean (Chefer et al., ICCV 2021). `otsu`: between its two classes of
    values. `fixed`: above `threshold`. `quantile`: above its `quantile`. `fitted`: of nine shares the one whose part is
    most likely the thing (`fitted.FittedCut`), as the calibration has learned it; without one, and with one that was
    fitted before there was this rule, it is `mean`. On photographs `fitted` has the best boxes (measured). Otsu is the
    default because it adapts to maps of every sharpness and needs no calibration: with Grad-ECLIP it comes within 0.01
    box IoU of the best fixed share, and there is no share to choose (measured)."""

    threshold: Share = 0.4
    """For the rule `fixed`: share of the highest heat, once the lowest is 0. The best value lies between 0.3 and 0.6,
    depending on the explainer (measured)."""

    quantile: Share = 0.85
    """For the rule `quantile`: 0.85 keeps 15 % of the image, about the size of one thing in a scene."""

    threshold_on: Literal["grid", "fine"] = "grid"
    """Which values the rule looks at: the cells of the map, or the samples of the interpolated map (7 x 7 for each of
    14 x 14 cells). Interpolation adds values between neighbouring cells, which moves mean, quantile and Otsu's
    threshold. The default is the grid, because that is what the model said. With `upsample: guided` the rule always
    looks at the fine map, because the cells know nothing of the edges."""

    smooth_patches: Patches = 0.5
    """Standard deviation in patches of a Gaussian blur before the cut; 0 for none. 0.5 joins the patchy heat of one
    thing: box recall is .776 instead of .754. At 0.7 thin things begin to vanish (.761; measured)."""

    upsample: Literal["linear", "guided"] = "linear"
    """How a map is filled in between its cells. `linear`: bilinearly. `guided`: along the edges of the image as the
    model sees it (`colours.Guide`); use it with the rule `fixed`. Guided, the peak lies on the thing in .946 of cases
    instead of .841, and with `threshold` 0.45 the contour is as good as GrabCut's (measured), for a millisecond a map.
    It is off by default because drawn things have plain colours; on photographs it adds about a point of pointing
    (measured)."""

    open_patches: Patches = 0.0
    """Radius of the morphological opening, which removes bridges and specks thinner than twice this. 0, because an
    interpolated map has no speck much smaller than a patch."""

    close_patches: Patches = 0.0
    """Radius of the morphological closing, which fills gaps narrower than twice this between edges that face each
    other. 0, because it also joins neighbouring things of one kind."""

    fill_holes: bool = True
    """Whether a region includes what it encloses. Boxes do not change. On, because heat often follows the outline of
    large things and few things have holes."""

    refine: Literal["none", "grabcut"] = "none"
    """What draws the outline of a part. `none`: the contour of the heat map. `grabcut`: the colours of the image as
    the model sees it (`colours.grabcut`), and the contour where the colours say nothing. GrabCut raises box IoU from
    .635 to .769 and mask IoU from .537 to .744 (measured). It is off by default because drawn things have plain
    colours and nothing is measured on photographs, and because it takes 10 to 25 ms a map on one core, where the rest
    of this stage takes a fifth of a millisecond."""

    min_area_share: Share = 0.001
    """Smallest part of the image that a region may cover. 0.001 is a fifth of a cell of a 14 x 14 map; a single hot
    cell gives about three fifths of a cell."""

    min_area_px: Annotated[int, Field(ge=1)] = 16
    """Smallest number of pixels. Below 4 x 4 pixels nobody can see whether a region is right."""

    rank: str = "energy"
    """Name in `SCORES` by which the parts of one map are compared. It is the heat inside rather than the peak, because
    the peak may be a single outlier cell."""

    keep_share: Share = 0.3
    """Parts whose rank is below this share of the best part's are dropped. 0.3 leaves room for the smaller one of "two
    dogs" and drops most weakly lit neighbours of another kind."""

    max_regions_singular: Annotated[int, Field(ge=1, le=100)] = 1
    """Most regions of a phrase that names one thing ("a red car")."""

    max_regions_plural: Annotated[int, Field(ge=1, le=100)] = 6
    """Most regions of a phrase that names several ("two dogs"). Captions rarely count beyond six."""

    group: Literal["none", "phrases", "things"] = "things"
    """Whether phrases that name the same thing are linked (`groups.linked`). `phrases`: they have the same `group` and
    each its own regions. `things`: they also share their regions, cut once from the mean of their maps."""

    score: str = "product"
    """Name in `SCORES`: the score stored with a region if there is no calibration. It ranks regions and is not a
    probability."""

    calibration: Path | Literal["auto", "none"] = "auto"
    """What turns the score into the probability that the region is right. A file of `phrasebox calibrate`, or `auto`:
    the model's own calibration, if it has one for these settings of explain and regions, else none."""

    absent_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the phrases that one expects to name nothing in their images, which presence and with it the score count
    on. 0.5 trusts the image alone; text that somebody wrote to describe its image has .05 or less, and text found
    beside an image more. `phrasebox stats` says which share the presences of a dataset speak for. Only with a
    calibration that tells presence."""

    min_presence: Share | None = 0.1
    """Phrases that are less likely in the image than this get no region and stand in the row's `absent`. Null keeps
    all. Only with a calibration that tells presence. On 600 photographs 0.1 loses 1.4 % of the phrases that are there
    and drops 41 % of those of other images; 0.05 loses 0.6 and drops 27 %, 0.2 loses 4.2 and drops 59 %
    (configs/README.md)."""

    @field_validator("rank", "score")
    @classmethod
    def _known_score(cls, name: str) -> str:
        if name not in SCORES:
            raise ValueError(f"expected one of {', '.join(sorted(SCORES))}, got {name!r}")
        return name

    @property
    def needs_pixels(self) -> bool:
        """Whether regions also depend on the colours of the image."""
        return self.refine != "none" or self.upsample != "linear"
