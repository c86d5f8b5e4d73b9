"""`phrasebox tune`: try settings of explain and regions on images whose things are known, one after the other.

Greedy, group by group: of a group's tries the best stays, if it is better beyond chance: the 95 % interval of the
paired difference excludes 0. The mean box IoU decides, which says more about few images than how many reach 0.5. The
maps of a try are computed once, and all cuts are tried on those that stay.

No calibration fits the tries, so all of them, and what they are compared with, are without one: instead of `fitted`
the rule is a fixed share, until the last group fits a cut to one half of the images and judges it on the other.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from rich.console import Console

from pipeline.config import RunConfig, sets_any
from pipeline.config_text import dump_yaml
from pipeline.evaluate.calibrate import fit_cut_to_rows
from pipeline.evaluate.estimates import Estimate, Floats, weighted_estimate
from pipeline.evaluate.evaluation_set import EvaluationSet, process_input
from pipeline.evaluate.metrics import correct, is_right, value_of
from pipeline.evaluate.verdicts import tuning_verdict
from pipeline.graph import build_steps, presence_in
from pipeline.terminal import progress_bar
from stages.contract.errors import ConfigError, InputError, one_line
from stages.contract.geometry import Box
from stages.contract.records import Record
from stages.contract.schema import records_to_rows
from stages.explain import kinds_for
from stages.explain.config import ExplainerConfig
from stages.explain.stage import ExplainStage, subtract_others
from stages.read import Reader
from stages.regions.score import Calibration
from stages.regions.stage import RegionsStage
from stages.regions.thresholds import FittedCut
from stages.shared.storage import write_text

if TYPE_CHECKING:
    from stages.shared.model.clip import ClipModel

Changes = Mapping[str, Any]  # keys of the configuration with their values

CHEAP: Final = ("grad_eclip", "maskclip", "gem", "clip_surgery")  # explainers at the cost of a forward pass

MAPS: Final[dict[str, tuple[Changes, ...]]] = {
    "explainer": tuple({"explain.kind": kind} for kind in CHEAP),
    "sizes": tuple({"explain.scales": sizes} for sizes in ([1.27], [1.55], [1.27, 1], [1.55, 1.27, 1])),
    "affinity": (
        {"explain.affinity": "none"},
        *({"explain.affinity": "propagation", "explain.affinity_reach": reach} for reach in (0.65, 0.8, 0.9)),
    ),
    "depth": tuple({"explain.affinity_depth": depth} for depth in (0.33, 0.5, 0.75, 0.9)),
    "blocks": tuple({"explain.blocks": blocks} for blocks in (1, 2, 4)),
}
"""Groups of changes, each of which needs maps of its own, and is left out where it makes no sense for the tower."""

CUTS: Final[dict[str, tuple[Changes, ...]]] = {
    "contrast": tuple({"explain.contrast": share} for share in (0.0, 0.25)),
    "rule": (
        {"regions.rule": "otsu"},
        {"regions.rule": "mean"},
        *({"regions.rule": "fixed", "regions.threshold": share} for share in (0.2, 0.3, 0.4, 0.5)),
        *({"regions.rule": "quantile", "regions.quantile": share} for share in (0.6, 0.8)),
    ),
    "blur": tuple({"regions.smooth_patches": patches} for patches in (0.0, 0.5, 1.0, 1.5, 2.0)),
    "edges": tuple({"regions.upsample": edges} for edges in ("linear", "guided")),
    "outline": tuple({"regions.refine": kind} for kind in ("none", "grabcut")),
    "fitted": ({"regions.rule": "fitted"},),
}
"""Groups of changes that need no other maps, tried behind those of `MAPS`."""

Figure = Literal["pointing", "pointing_off_centre", "box_recall", "box_iou", "mask_iou", "precision", "agreement"]
"""Metrics; `precision`: the share of right regions (a box IoU of 0.5 or more); `agreement`, with reviews: that of right
ones among the best regions of the phrases, where it is known, see `Trials.judge`."""

FIGURES: Final[tuple[str, ...]] = get_args(Figure)
_COUNTED: Final = {"regions": "precision", "targets": "box_recall", "reviewed": "agreement"}  # count -> figure
FOR_MAPS: Final = 0.75  # share of the budget after which no more maps are computed: the cuts have the rest

Wrong = Mapping[tuple[str, str], Sequence[Box]]  # id of a sample and phrase -> boxes that people called wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`figures` by name, None for one that nothing has; and (images, 2) sums and counts of the figure that decides."""

    figures: dict[str, Any]
    parts: Floats

    def better_than(self, other: Measured) -> Estimate:
        """Return the difference of the figures with its interval, over images drawn together."""

        def difference(drawn: Floats) -> float:
            (own, n), (before, m) = drawn @ self.parts, drawn @ other.parts
            return float(own / n - before / m) if n and m else math.nan

        return weighted_estimate(difference, np.arange(len(self.parts)))


@dataclass(kw_only=True)
class Trials:
    """The images and their maps, and what judges the regions that are cut from them."""

    evaluation_set: EvaluationSet
    wrong: Wrong | None  # None without reviews
    by: Figure
    console: Console
    _maps: dict[str, list[Record]] = field(default_factory=dict)  # of the settings that stay, and of those last tried
    _known: list[Record] = field(default_factory=list)  # of the dataset's own settings
    _reader: Reader | None = None

    @cached_property
    def model(self) -> ClipModel:
        """The model, loaded once."""
        from stages.shared.model.load import load  # noqa: PLC0415  torch takes seconds to import, and verbs import this

        return load(self.config({}).model)

    def config(self, changes: Changes) -> RunConfig:
        """Return the dataset's configuration with changes. Raise ConfigError where they make no sense."""
        added = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
        return replace(self.evaluation_set, settings=[*self.evaluation_set.settings, *added]).config()

    def start(self, most: int) -> Measured:
        """Compute the dataset's own maps for `most` images, and measure its settings, with its calibration."""
        uncontrasted = ["explain.contrast=0", "regions.refine=grabcut", "regions.calibration=none"]  # keep the pixels
        evaluation_set = replace(self.evaluation_set, settings=[*self.evaluation_set.settings, *uncontrasted])
        graph = evaluation_set.graph(pixels=True)
        assert graph is not None, "pixels are needed"  # noqa: S101
        steps, dataset = build_steps(self.config({})), self.evaluation_set.dataset
        made_with, changed = (
            dataset.manifest["calibration"],
            sets_any(self.evaluation_set.settings, ("explain", "regions")),
        )
        if made_with not in (None, steps.calibration) and not changed:
            raise ConfigError(f"regions.calibration: {dataset.path} was made with another one than is found now")
        own = steps.cuts.calibration if made_with or changed else None
        if own is not None and own.presence is not None:
            graph = replace(graph, model=ExplainStage(graph.explains.config, presence=presence_in(own)))
        self._reader = graph.reader
        self._known = [
            record for _, record in evaluation_set.rows_with_maps(graph, self.console, most) if record.error is None
        ]
        self._maps[self._key(self.config({}))] = self._known
        return self.judge(self.config({}), self._known, own)

    def measured(self, config: RunConfig) -> Measured:
        """Measure settings without a calibration; the rule `fitted` is fitted to the other half of the images."""
        records = self._maps_of(config)
        if config.regions.rule != "fitted":
            return self.judge(config, records)
        rows = {row["sample_id"]: row for row in self.evaluation_set.rows()}
        contrasted_ones = [_contrasted(record, config) for record in records]
        cuts = [
            fit_cut_to_rows(
                config.regions, [(rows[each.sample.sample_id], each) for each in half], self.evaluation_set
            )[0]
            for half in (contrasted_ones[1::2], contrasted_ones[::2])
        ]
        return self.judge(config, records, cuts=cuts)

    def judge(
        self,
        config: RunConfig,
        records: Sequence[Record],
        calibration: Calibration | None = None,
        cuts: Sequence[FittedCut | None] = (None,),
    ) -> Measured:
        """Cut regions from maps and judge them. Images take turns with the `cuts`.

        Reviews judge the best region of a phrase. It is right if its box has an IoU of 0.5 or more with one that people
        called right, and wrong if it has that with none of them, though there are some: they showed where the thing
        is. It is also wrong if it has that with a box that people called wrong, or if they said that nothing in the
        image is what the phrase names. Of any other region nobody knows, so it does not count.
        """
        stages = [RegionsStage(config.regions, calibration, fitted=cut) for cut in cuts]
        values: dict[str, list[list[float]]] = {name: [] for name in FIGURES}
        for number, plain in enumerate(records):
            stage, record = stages[number % len(stages)], _contrasted(plain, config)
            (row,) = records_to_rows(stage.process([record]), embed_images=False).to_pylist()
            own: dict[str, list[float]] = {name: [] for name in FIGURES}
            best = {one["phrase"]: one for one in sorted(row["annotations"], key=lambda one: one["score"])}
            for query in self.evaluation_set.queries(row, record.phrases, stage.maker.surfaces_of(record)):
                right = [float(each) for each in correct(query)]
                own["precision"] += right
                if self.wrong is not None:
                    own["agreement"] += right[:1] or [0.0] * (query.target is not None)
                best.pop(query.phrase, None)
                for name in FIGURES[:-2] if query.target is not None else ():
                    own[name].append(value_of(name, query))
            for phrase, region in best.items():
                if is_right(region["bbox"], (self.wrong or {}).get((row["sample_id"], phrase), ())):
                    own["agreement"].append(0.0)
            for name, found in own.items():
                values[name].append([value for value in found if not math.isnan(value)])
        every = {name: [value for found in each for value in found] for name, each in values.items()}
        means = {name: math.fsum(found) / len(found) if found else None for name, found in every.items()}
        counts = {name: len(every[of]) for name, of in _COUNTED.items()}
        parts = np.array([[math.fsum(found), len(found)] for found in values[self.by]], np.float64).reshape(-1, 2)
        return Measured(figures={**means, **counts}, parts=parts)

    def makes_sense(self, config: RunConfig, group: str, changes: Changes) -> bool:
        """Return whether a try differs from the configuration that stays, and suits the model's tower and the truth."""
        plain, explain = config.model_dump(mode="json"), config.explain
        if all(plain[key.split(".")[0]].get(key.split(".")[1]) == value for key, value in changes.items()):
            return False
        tower = self.model.tower.kind
        conditions = {
            "explainer": changes.get("explain.kind") in kinds_for(tower),
            "sizes": explain.image_size != "keep",
            "depth": tower == "class_token" and explain.affinity != "none",
            "blocks": tower == "class_token" and explain.kind == "grad_eclip",
            "fitted": self.wrong is None,
        }
        return conditions.get(group, True)

    def keep_maps(self, *changes: Changes) -> None:
        """Let the maps of other settings go."""
        self._maps = {key: self._maps[key] for key in {self._key(self.config(each)) for each in changes}}

    def _maps_of(self, config: RunConfig) -> list[Record]:
        key = self._key(config)
        if key not in self._maps:
            plain = config.model_copy(update={"explain": config.explain.model_copy(update={"contrast": 0.0})})
            steps = build_steps(plain, self.model)
            settings = steps.explains.config.model_copy(update={"keep_pixels": True})
            stages = [steps.before[1], ExplainStage(settings, self.model)]
            phrases = {record.sample.sample_id: record.phrases for record in self._known}
            assert self._reader is not None, "start comes first"  # noqa: S101
            found = process_input(self._reader, stages, phrases, self.console, phrases)
            by_name = {record.sample.sample_id: record for record in found}
            self._maps[key] = [by_name[record.sample.sample_id] for record in self._known]
        return self._maps[key]

    def _key(self, config: RunConfig) -> str:
        return json.dumps(config.explain.model_dump(mode="json", exclude={"contrast"}), sort_keys=True)


def tuned(
    evaluation_set: EvaluationSet,
    console: Console,
    *,
    wrong: Wrong | None = None,
    by: Figure = "box_iou",
    most: int = 500,
    minutes: float = math.inf,
    maps: Mapping[str, Sequence[Changes]] = MAPS,
    cuts: Mapping[str, Sequence[Changes]] = CUTS,
) -> dict[str, Any]:
    """Try groups of changes one after the other on `most` images; see the module.

    No try begins after `minutes`, and none that needs maps after `FOR_MAPS` of them. `wrong` are the boxes that reviews
    call wrong, if the ground truth comes from reviews; then no cut is fitted, since that needs boxes of all things.

    Returns:
        `dataset`, `images`, `known` (phrases) and `by`; `start`, the figures of the dataset; `base`, those without its
        calibration; `steps`, one for each try: `group`, `changes`, `kept`, `figures`, and `gain`, the difference from
        what stays above it; `left_out`, the number of tries that the budget left out; `skipped`, why others could not
        be made; `best`, all changes that stay, none where they are not beyond chance better than the dataset; `gain`,
        their difference from it; `figures`, theirs; `settings`, the sections explain and regions; `baseline_s`, the
        seconds that `start` and `base` took; `verdict`, see `tuning_verdict`.

    Raises:
        InputError: No phrase of the dataset is known to the ground truth, or images are no longer in the input.
        ConfigError: A setting cannot be used.
    """
    begun = time.monotonic()
    work = Trials(evaluation_set=evaluation_set, wrong=wrong, by=by, console=console)
    start = work.start(most)
    if not start.figures["targets"] + start.figures["reviewed"]:
        raise InputError(f"none of the {len(start.parts)} images has a phrase with a known place")
    if start.figures[by] is None:
        raise ConfigError(f"--by {by}: there is no such figure with this ground truth and the dataset's settings")
    uncut = work.config({}).regions.without_cut()
    best: dict[str, Any] = {
        "regions.calibration": "none",
        "regions.rule": uncut.rule,
        "regions.threshold": uncut.threshold,
    }
    base = now = work.measured(work.config(best))
    baseline_s = time.monotonic() - begun
    steps, skipped = list[dict[str, Any]](), list[str]()
    left_out, groups = 0, {**maps, **cuts}
    with progress_bar(console, "settings", sum(map(len, groups.values()))) as advance:
        for group, candidates in groups.items():
            config, took, of_group = work.config(best), None, now
            for changes in candidates:
                advance(len(steps) + left_out + 1)
                tried = {**best, **_carried(config.explain, changes), **changes}
                if not work.makes_sense(config, group, changes):
                    continue
                if time.monotonic() - begun > 60 * minutes * (FOR_MAPS if group in maps else 1.0):
                    left_out += 1
                    continue
                try:
                    found = work.measured(work.config(tried))
                except (ConfigError, InputError) as error:  # the model is too small, or the images are too few
                    skipped.append(f"{group}: {one_line(error)}")
                    continue
                gain = found.better_than(now)
                steps.append({"group": group, "changes": dict(changes), "kept": False, "figures": found.figures})
                steps[-1]["gain"] = gain.plain()
                if gain.low > 0 and found.figures[by] > of_group.figures[by]:
                    took, of_group = (steps[-1], tried), found
                work.keep_maps(best, tried if took is None else took[1])
            if took is not None:
                took[0]["kept"], best, now = True, took[1], of_group
    if not (any(step["kept"] for step in steps) and now.better_than(start).low > 0):
        best, now = {}, start  # the dataset's calibration may be worth more than all that was found
    else:
        chosen = {key for step in steps if step["kept"] for key in step["changes"]}
        best = {key: value for key, value in best.items() if key in chosen or not key.startswith("regions.")}
        best["regions.calibration"] = "auto"
    final = replace(work, evaluation_set=evaluation_set.with_requested_rule()).config(
        best
    )  # without the rule that stood in for `fitted`
    figures = {
        "dataset": str(evaluation_set.dataset.path),
        "images": len(now.parts),
        "known": start.figures["reviewed"] or start.figures["targets"],
        "by": by,
        "start": start.figures,
        "base": base.figures,
        "steps": steps,
        "left_out": left_out,
        "skipped": skipped,
        "best": best,
        "gain": now.better_than(start).plain(),
        "figures": now.figures,
        "settings": {name: getattr(final, name).model_dump(mode="json") for name in ("explain", "regions")},
        "baseline_s": round(baseline_s, 1),
    }
    return {**figures, "verdict": tuning_verdict(figures)}


def _contrasted(record: Record, config: RunConfig) -> Record:
    return replace(record, heat_maps=tuple(subtract_others(list(record.heat_maps), config.explain.contrast)))


def _carried(explain: ExplainerConfig, changes: Changes) -> dict[str, Any]:
    """The settings that every explainer has, for another explainer, which would begin with its defaults."""
    if "explain.kind" not in changes:
        return {}
    shared = explain.model_dump(mode="json", include=set(ExplainerConfig.model_fields) - {"kind"})
    return {f"explain.{name}": value for name, value in shared.items()}


def write_settings(settings: Mapping[str, Any], out: Path) -> None:
    """Write sections of a configuration as a file. Raise ConfigError if the file cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, dump_yaml(settings))
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from error
