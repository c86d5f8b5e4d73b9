"""`phrasebox tune`: try settings of explain and regions on images with known things, one after the other.

Greedy, group by group: the best try of a group stays if it is better beyond chance, which means
that the 95 % interval of the paired difference excludes 0. The mean box IoU decides: on few images
it says more than the share that reaches 0.5. The maps of a try are computed once, and all cuts are
tried on the maps that stay.

No calibration fits the tries, so neither they nor their baseline have one. Instead of `fitted` the
rule is a fixed share, until the last group fits a cut to one half of the images and judges it on
the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Final

from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from pipeline.evaluate.estimates import Estimate, plain_values
from pipeline.evaluate.verdicts import interval
from pipeline.research.tune.trials import Changes, DecidingFigure, Trial, TrialFigures, TuningSession
from pipeline.terminal import duration, progress_bar
from stages.contract.errors import ConfigError, InputError, one_line
from stages.contract.values import Json
from stages.explain.config import ExplainerConfig

CHEAP: Final = ("grad_eclip", "maskclip", "gem", "clip_surgery")  # explainers at the cost of a forward pass

MAPS: Final[dict[str, tuple[Changes, ...]]] = {
    "explainer": tuple({"explain.kind": kind} for kind in CHEAP),
    "sizes": tuple({"explain.scales": sizes} for sizes in ([1.27], [1.55], [1.27, 1], [1.55, 1.27, 1])),
    "affinity": (
        {"explain.affinity": "none"},
        *(
            {"explain.affinity": "propagation", "explain.affinity_reach": reach}
            for reach in (0.65, 0.8, 0.9)
        ),
    ),
    "depth": tuple({"explain.affinity_depth": depth} for depth in (0.33, 0.5, 0.75, 0.9)),
    "blocks": tuple({"explain.blocks": blocks} for blocks in (1, 2, 4)),
}
"""Groups of changes that need maps of their own. A change that makes no sense for the tower is left
out."""

CUTS: Final[dict[str, tuple[Changes, ...]]] = {
    "contrast": tuple({"explain.contrast": share} for share in (0.0, 0.25)),
    "rule": (
        {"regions.rule": "otsu"},
        {"regions.rule": "mean"},
        *({"regions.rule": "fixed", "regions.threshold": share} for share in (0.2, 0.3, 0.4, 0.5)),
    ),
    "blur": tuple({"regions.smooth_patches": patches} for patches in (0.0, 0.5, 1.0, 1.5, 2.0)),
    "edges": tuple({"regions.upsample": edges} for edges in ("linear", "guided")),
    "outline": tuple({"regions.refine": kind} for kind in ("none", "grabcut")),
    "fitted": ({"regions.rule": "fitted"},),
}
"""Groups of changes that need no other maps, tried after the groups of `MAPS`."""

FOR_MAPS: Final = (
    0.75  # share of the budget after which no more maps are computed: the rest is for the cuts
)


@pydantic_dataclass(kw_only=True)
class Step:
    """A try.

    Attributes:
        group: Its group of changes.
        changes: The changes.
        stays: Whether they stay.
        figures: Figures of the try.
        gain: Difference from the settings before the group.
    """

    group: str
    changes: Changes
    stays: Annotated[bool, Field(serialization_alias="kept")] = False
    figures: TrialFigures
    gain: Estimate


@pydantic_dataclass(frozen=True, kw_only=True)
class Tuning:
    """What `phrasebox tune` says.

    Attributes:
        dataset: Path of the dataset.
        images: Number of images.
        phrases: Number of phrases with a known answer.
        by: The figure that decides.
        start: Figures of the dataset.
        base: Figures without its calibration.
        steps: The tries.
        left_out: Number of tries that the budget left out.
        skipped: Why other tries failed.
        best: All changes that stay; empty if they are not better than the dataset beyond chance.
        gain: Their difference from the dataset.
        figures: Their figures.
        settings: The sections explain and regions with them.
        baseline_s: Seconds of `start` and `base`.
    """

    dataset: str
    images: int
    phrases: Annotated[int, Field(serialization_alias="known")]
    by: DecidingFigure
    start: TrialFigures
    base: TrialFigures
    steps: list[Step]
    left_out: int
    skipped: list[str]
    best: Changes
    gain: Estimate
    figures: TrialFigures
    settings: Json
    baseline_s: float

    @property
    def verdict(self) -> str:
        """Whether to use the settings."""
        if self.best:
            gain = self.gain
            return (
                f"Verdict: use the new settings: {self.by} rises by {gain.value:.3f} ({interval(gain.low, gain.high)}) "
                "on the images that they were chosen on. Measure them on others with phrasebox eval."
            )
        if not self.steps and self.left_out:
            return (
                f"Verdict: no try was begun: the two baselines took {duration(self.baseline_s)}; give "
                f"--minutes {math.ceil(self.baseline_s / 6)} or --limit {max(1, self.images // 2)}."
            )
        if not self.steps:
            return "Verdict: keep the dataset's settings. No try suits the model and the ground truth."
        rest = f"; --minutes left out {self.left_out:,}" if self.left_out else ""
        return (
            f"Verdict: keep the dataset's settings. Tries that are shown to be better in {self.by}: 0 of "
            f"{len(self.steps):,}{rest}."
        )

    def to_json(self) -> Json:
        """Return all parts as values of JSON."""
        return {**plain_values(self), "verdict": self.verdict}


@dataclass(kw_only=True)
class _GreedySearch:
    """The changes that stay so far, their trial, and the tries."""

    session: TuningSession
    changes: Json
    trial: Trial
    steps: list[Step] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    left_out: int = 0

    def try_group(
        self, group: str, candidates: Sequence[Changes], deadline_s: float, advance: Callable[[int], None]
    ) -> None:
        """Try candidates one after the other; the best one stays if it is better beyond chance."""
        session = self.session
        explain = session.config(self.changes).explain
        best_step: Step | None = None
        best_changes = self.changes
        best_trial = self.trial
        for changes in candidates:
            advance(len(self.steps) + self.left_out + 1)
            if not session.is_applicable(group, changes, self.changes):
                continue
            if time.monotonic() > deadline_s:
                self.left_out += 1
                continue
            all_changes = {**self.changes, **_shared_settings(explain, changes), **changes}
            try:
                trial = session.measure(all_changes)
            except (ConfigError, InputError) as error:  # the model is too small, or the images are too few
                self.failures.append(f"{group}: {one_line(error)}")
                continue
            gain = trial.gain_over(self.trial)
            step = Step(group=group, changes=changes, figures=trial.figures, gain=gain)
            self.steps.append(step)
            if gain.low > 0 and session.figure(trial) > session.figure(best_trial):
                best_step = step
                best_changes = all_changes
                best_trial = trial
            session.keep_maps(self.changes, all_changes if best_step is None else best_changes)
        if best_step is not None:
            best_step.stays = True
            self.changes = best_changes
            self.trial = best_trial

    def best_over(self, start: Trial) -> tuple[Json, Trial]:
        """Return the changes that stay and their trial, or none and `start` if they are not better beyond chance."""
        keys = {key for step in self.steps if step.stays for key in step.changes}
        if keys and self.trial.gain_over(start).low > 0:
            changes = {
                key: value
                for key, value in self.changes.items()
                if key in keys or not key.startswith("regions.")
            }
            return {**changes, "regions.calibration": "auto"}, self.trial
        return {}, start  # the dataset's calibration may be worth more than all changes


def tune_settings(
    session: TuningSession,
    *,
    most: int = 500,
    minutes: float = math.inf,
    maps: Mapping[str, Sequence[Changes]] = MAPS,
    cuts: Mapping[str, Sequence[Changes]] = CUTS,
) -> Tuning:
    """Try groups of changes one after the other on `most` images; see the module.

    No try begins after `minutes`, and no try that needs maps after the share `FOR_MAPS` of them.

    Raises:
        InputError: No phrase of the dataset is known to the ground truth, or images are no
            longer in the input.
        ConfigError: A setting cannot be used.
    """
    start_s = time.monotonic()
    start = session.start(most)
    uncut = session.config({}).regions.with_fallback_cut()
    baseline = {
        "regions.calibration": "none",
        "regions.rule": uncut.rule,
        "regions.threshold": uncut.threshold,
    }
    base = session.measure(baseline)
    baseline_s = time.monotonic() - start_s
    search = _GreedySearch(session=session, changes=baseline, trial=base)
    groups = {**maps, **cuts}
    with progress_bar(session.console, "settings", sum(map(len, groups.values()))) as advance:
        for group, candidates in groups.items():
            deadline_s = start_s + 60 * minutes * (FOR_MAPS if group in maps else 1.0)
            search.try_group(group, candidates, deadline_s, advance)
    best, trial = search.best_over(start)
    # Without the rule that stood in for `fitted`.
    final = replace(session, evaluation_set=session.evaluation_set.with_requested_rule()).config(best)
    return Tuning(
        dataset=str(session.evaluation_set.dataset.path),
        images=len(trial.parts),
        phrases=start.phrases,
        by=session.by,
        start=start.figures,
        base=base.figures,
        steps=search.steps,
        left_out=search.left_out,
        skipped=search.failures,
        best=best,
        gain=trial.gain_over(start),
        figures=trial.figures,
        settings={name: getattr(final, name).model_dump(mode="json") for name in ("explain", "regions")},
        baseline_s=round(baseline_s, 1),
    )


def _shared_settings(explain: ExplainerConfig, changes: Changes) -> Json:
    """Return the settings that all explainers share, if the explainer changes: a new one starts from its defaults."""
    if "explain.kind" not in changes:
        return {}
    settings = explain.model_dump(mode="json", include=set(ExplainerConfig.model_fields) - {"kind"})
    return {f"explain.{name}": value for name, value in settings.items()}
