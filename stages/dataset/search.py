"""What is looked for in a dataset, as plain values and as an SQL condition over `selection.REGION_COLUMNS`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["regions", "no_regions", "no_phrases", "failed"]
"""Of a sample: with regions, with phrases but no region, without phrases, with an error."""

Sort = Literal["dataset", "score_high", "score_low", "regions", "random"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]


class Search(BaseModel):
    """Conditions on regions and samples, all of which must hold, and the order of the answers.

    A sample is found if at least one of its regions fulfils the conditions on regions; if there are none, also
    without regions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    phrase: str = ""
    """Part of the phrase, in any case."""
    head: str = ""
    """The head noun."""
    score_min: Share | None = None
    score_max: Share | None = None
    area_min: Share | None = None
    """Of the region, as a share of the image."""
    area_max: Share | None = None
    where: str = ""
    """SQL condition, see `stages.dataset.selection`."""
    regions_min: Count | None = None
    """Regions of the image."""
    regions_max: Count | None = None
    mark: Literal["", "good", "bad", "none", "any"] = ""
    """What people marked: `none` for the samples without a mark."""
    status: Literal["", Status] = ""
    reason: str = ""
    """Of the error, a key of `stages.contract.errors.ROW_ERRORS`."""
    sort: Sort = "dataset"
    """`score_high` and `score_low` go by the best of the regions that were looked for."""
    seed: Count = 0
    """Other seeds, other random orders."""

    def region_condition(self) -> str:
        """SQL over the columns of a region; "" if any region will do."""
        parts = []
        if self.phrase.strip():
            parts.append(f"contains(phrase, {literal(' '.join(self.phrase.casefold().split()))})")
        if self.head.strip():
            parts.append(f"head = {literal(self.head.strip().casefold())}")
        for name, low, high in (
            ("score", self.score_min, self.score_max),
            ("area_share", self.area_min, self.area_max),
        ):
            parts += _between(name, low, high)
        if self.where.strip():
            parts.append(f"(\n{self.where.strip()}\n)" if parts else self.where.strip())
        return " AND ".join(parts)

    def sample_condition(self) -> str:
        """SQL over `region_count` and `mark`, which samples and regions have; "" if any will do."""
        parts = _between("region_count", self.regions_min, self.regions_max)
        if self.mark in ("good", "bad"):
            parts.append(f"mark = {literal(self.mark)}")
        elif self.mark:
            parts.append(f"mark IS {'' if self.mark == 'none' else 'NOT '}NULL")
        return " AND ".join(parts)

    def condition(self) -> str:
        """Both, as `phrasebox export --where` takes it."""
        region = self.region_condition()
        sample = self.sample_condition()
        if region and sample:
            # on lines of its own, so that a comment at its end does not swallow the rest
            return f"(\n{region}\n) AND {sample}" if self.where.strip() else f"{region} AND {sample}"
        return region or sample


def literal(text: str) -> str:
    """SQL string of a text."""
    return "'" + text.replace("'", "''") + "'"


def _between(name: str, low: float | None, high: float | None) -> list[str]:
    parts = []
    if low is not None:
        parts.append(f"{name} >= {low!r}")
    if high is not None:
        parts.append(f"{name} <= {high!r}")
    return parts
