"""A search in a dataset, as plain values and as an SQL condition over `selection.REGION_COLUMNS`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["regions", "no_regions", "no_phrases", "failed"]
"""Status of a sample: it has regions, phrases but no region, no phrases, or an error."""

Sort = Literal["dataset", "score_high", "score_low", "regions", "random"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]


class Search(BaseModel):
    """Conditions on regions and samples, all of which must hold, and the order of the answers.

    A sample is found if at least one of its regions fulfils the conditions on regions. Where there are no such
    conditions, samples without regions are found too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    phrase: str = ""
    """Part of the phrase; case does not matter."""
    head: str = ""
    """The head noun."""
    score_min: Share | None = None
    score_max: Share | None = None
    area_min: Share | None = None
    """Least area of the region, as a share of the image."""
    area_max: Share | None = None
    where: str = ""
    """SQL condition, see `stages.dataset.selection`."""
    regions_min: Count | None = None
    """Least number of regions in the image."""
    regions_max: Count | None = None
    mark: Literal["", "good", "bad", "none", "any"] = ""
    """Mark that people gave; `none` finds samples without a mark."""
    status: Literal["", Status] = ""
    reason: str = ""
    """Reason of the error, a key of `stages.contract.errors.ROW_ERRORS`."""
    sort: Sort = "dataset"
    """`score_high` and `score_low` order by the best score of the regions that were found."""
    seed: Count = 0
    """Seed of the random order."""

    def region_condition(self) -> str:
        """SQL over the columns of a region; "" if every region counts."""
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
        """SQL over `region_count` and `mark`, which samples and regions have; "" if every sample counts."""
        parts = _between("region_count", self.regions_min, self.regions_max)
        if self.mark in ("good", "bad"):
            parts.append(f"mark = {literal(self.mark)}")
        elif self.mark:
            parts.append(f"mark IS {'' if self.mark == 'none' else 'NOT '}NULL")
        return " AND ".join(parts)

    def condition(self) -> str:
        """Both conditions in one, as `phrasebox export --where` takes it."""
        region = self.region_condition()
        sample = self.sample_condition()
        if region and sample:
            # On lines of its own, so that a comment at its end does not hide the rest.
            return f"(\n{region}\n) AND {sample}" if self.where.strip() else f"{region} AND {sample}"
        return region or sample


def literal(text: str) -> str:
    """A text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def _between(name: str, low: float | None, high: float | None) -> list[str]:
    parts = []
    if low is not None:
        parts.append(f"{name} >= {low!r}")
    if high is not None:
        parts.append(f"{name} <= {high!r}")
    return parts
