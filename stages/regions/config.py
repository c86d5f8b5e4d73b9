"""The settings of the regions stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.config import SegmenterConfig
from phrasebox.stages.scores.foreign_captions import USUAL_SHARE

Rule = Literal["mean", "otsu", "fixed", "fitted"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]

SMALLEST_EXPONENT: Final = 0.2
LARGEST_EXPONENT: Final = 5.0

FALLBACK_CUT: Final = 0.2
"""Share of the highest heat at which maps are cut that no calibration cuts."""


class RegionsConfig(BaseModel):
    """How heat maps become regions.

    Lengths are in patches (cells of the heat map) and areas are shares of the image, so that
    one configuration fits images of any size. Defaults were chosen on photographs
    (docs/benchmarks/photographs.md); the model `demo` brings settings for synthetic scenes
    (docs/benchmarks/settings.md).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Rule = Field(
        "fitted",
        description="Rule that says where a map is cut. mean: above its mean (Chefer et al., ICCV "
        "2021). otsu: between its two classes of values. fixed: above `threshold`. fitted: at the "
        "one of nine shares whose part is most likely the object, as a calibration has learned. "
        "Where no calibration says so, maps are cut at 0.2 of their highest heat: the run says "
        "this, and the dataset stores it as `fixed`.",
    )
    threshold: Share = Field(
        FALLBACK_CUT, description="Share of the highest heat for `fixed`; 0.2 was chosen on photographs."
    )
    exponent: Annotated[float, Field(ge=SMALLEST_EXPONENT, le=LARGEST_EXPONENT)] | Literal["auto"] = Field(
        "auto",
        description="Power of the heat, as a share of a map's highest, before maps are cut: above 1 it makes "
        "flat maps narrower. Without a calibration auto takes the power that gives the maps of the "
        "run's first images a mean heat of 0.195, and 1 if it is between 0.67 and 1.5. The run says "
        "and stores it. With a calibration auto is the power of the maps that it was fitted to, usually 1.",
    )
    # It joins the patchy heat of one object. On drawn scenes 0.5 is best: at 0.7 thin objects
    # begin to vanish.
    smooth_patches: float = Field(
        1.0,
        ge=0.0,
        le=4.0,
        description="Standard deviation in patches of a Gaussian blur before the cut; 0 for none.",
    )
    # Guided, the peak lies on the object in 0.947 of cases instead of 0.841, and with
    # `threshold` 0.45 the contour is as good as GrabCut's (drawn scenes have plain colours); on
    # photographs it adds a point of pointing.
    upsample: Literal["linear", "guided"] = Field(
        "linear",
        description="How a map is filled in between its cells: bilinearly, or along the edges of "
        "the image as the model sees it, which costs a millisecond a map and suits the rule "
        "`fixed`.",
    )
    # GrabCut raises box IoU from 0.636 to 0.769 and mask IoU from 0.537 to 0.744 on drawn
    # scenes, with their plain colours; it takes 10 to 25 ms a map, many times as long as the
    # rest of the stage.
    refine: Literal["none", "grabcut", "sam"] = Field(
        "none",
        description="What draws the outline of a part: the contour of the heat map, GrabCut on the "
        "colours of the image as the model sees it, or the segmenter of `regions.sam` on the "
        "image itself, whose quality we could not measure. Where that fails it is the contour; "
        "each region says so (`refined`, `fallback`).",
    )
    sam: SegmenterConfig = Field(
        SegmenterConfig(), description="The segmenter for `refine: sam`; else unused."
    )
    # A single hot cell of a 14 x 14 map gives about 0.003 of the image.
    min_area_share: Share = Field(0.001, description="Smallest share of the image that a region may cover.")
    # Below 4 x 4 pixels nobody can see whether a region is right.
    min_area_px: int = Field(16, ge=1, description="Smallest number of pixels of a region.")
    # 0.3 leaves room for the smaller one of "two dogs" and drops most weakly lit neighbours of
    # another kind.
    keep_share: Share = Field(
        0.3, description="Parts with less heat than this share of the hottest part's are dropped."
    )
    max_regions_singular: int = Field(
        1, ge=1, le=100, description="Most regions of a phrase that names one object."
    )
    max_regions_plural: int = Field(
        6, ge=1, le=100, description="Most regions of a phrase that names several objects."
    )
    group: Literal["none", "phrases", "things"] = Field(
        "things",
        description="Whether phrases that name the same object are linked. phrases: they have the "
        "same `group` and each its own regions. things: they also share their regions, cut from "
        "the mean of their maps.",
    )
    calibration: Path | Literal["auto", "none", "generic"] = Field(
        "auto",
        description="What turns the score into the probability that the region is right: a file of "
        "`phrasebox calibrate`, or the model's own calibration if it has one for these settings "
        "(auto). If it has none, auto fits presence alone to the captions of the run's first "
        "images, without annotations; none does not. generic takes the calibration of other models, "
        "brought to this one by the first images; its scores are estimates.",
    )
    absent_share: Annotated[float, Field(gt=0.0, lt=1.0)] | Literal["auto"] = Field(
        "auto",
        description="Expected share of phrases that name nothing in their images, for calibrations "
        "of presence. What exceeds 0.05, the usual share of false details, is taken for captions "
        "of other images, whose phrases are all absent. auto estimates it from the captions of "
        "the run's first images, which the run says and stores. With a detector each phrase is "
        "judged by itself.",
    )
    # Of 300 photographs of dev with their own captions it loses 1 % of the phrases. Where half
    # of the captions are of other photographs, it loses 2 % and drops 86 % of the others'
    # (docs/how-to/filter-captions.md).
    min_presence: Share | None = Field(
        0.5,
        description="Phrases less likely in the image than this get no region and are listed in "
        "the row's `absent`; null keeps all. Only calibrations of presence say how likely a "
        "phrase is.",
    )

    @property
    def heat_exponent(self) -> float:
        """The power of the heat; 1 where no run has fitted it."""
        return 1.0 if self.exponent == "auto" else self.exponent

    @property
    def expected_absent_share(self) -> float:
        """The expected share of absent phrases; the usual one where no run has estimated it."""
        return USUAL_SHARE if self.absent_share == "auto" else self.absent_share

    def is_absent(self, presence: float | None) -> bool:
        """Return whether a phrase of this presence gets no region; None: nothing is known of it."""
        return presence is not None and self.min_presence is not None and presence < self.min_presence

    @property
    def needs_pixels(self) -> bool:
        """Whether regions also depend on the colours of the image."""
        return self.refine == "grabcut" or self.upsample != "linear"

    @property
    def learns_boxes(self) -> bool:
        """Whether a fit may learn where boxes are: GrabCut draws its own."""
        return self.rule == "fitted" and self.refine != "grabcut"

    def with_fallback_cut(self) -> Self:
        """Return the settings for maps that no calibration cuts: `fitted` is a fixed share of 0.2 there.

        That is the share of Zhou et al. (CVPR 2016), and of the rules that know the map alone
        the one with the most right boxes on the 200 photographs that it was chosen on
        (docs/benchmarks/photographs.md).
        """
        return (
            self.model_copy(update={"rule": "fixed", "threshold": FALLBACK_CUT})
            if self.rule == "fitted"
            else self
        )

    def row_settings(self) -> Json:
        """Return the settings that decide regions and scores, as plain values."""
        unused = {"batch_size"} if self.refine == "sam" else True
        return self.model_dump(mode="json", exclude={"sam": unused})
