"""Phrases of other images, asked of the images of a dataset: for `eval --absent` and `calibrate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from typing import Any, Final

from rich.console import Console

from phrasebox.pipeline.evaluate.absent import QueriedImage, choose_absent_phrases
from phrasebox.pipeline.evaluate.absent_figures import AbsentFigures, Pair, absent_figures
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet, phrases_of, process_input
from phrasebox.pipeline.evaluate.matching import Answer
from phrasebox.pipeline.output.backup import PRESENCE_FILE
from phrasebox.pipeline.output.decisions import Decisions
from phrasebox.pipeline.run.presence_fit import read_presence, signals_of
from phrasebox.pipeline.run.steps import HeatMapSteps
from phrasebox.pipeline.terminal import say
from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.records import HeatMap, Phrase, Record
from phrasebox.stages.explain.stage import ExplainStage, subtract_others
from phrasebox.stages.phrases.foreign import may_be
from phrasebox.stages.regions.maker import share_presences
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.presence import ClipFeatures, ImageSignals
from phrasebox.stages.scores.score import at_share

EVEN_SHARE: Final = 0.5
"""The share of absent phrases among those that are asked for."""


def query_images(
    evaluation_set: EvaluationSet, parsed: Mapping[str, Sequence[Phrase]] = MappingProxyType({})
) -> dict[str, QueriedImage]:
    """Choose absent phrases for each row that has no error and has a phrase with a known place; by sample id.

    parsed: All phrases of some samples; the dataset may not hold those without a region.
    """
    images = []
    for row in evaluation_set.rows():
        if row["error"] is None:
            entries = row.get("phrases")
            stored = phrases_of(
                [*row["annotations"], *row["absent"]] if entries is None else entries,
                row.get("caption_language") or (),
            )
            phrases = parsed.get(row["sample_id"], stored)
            image = QueriedImage(
                number=row["id"],
                sample_id=row["sample_id"],
                captions=tuple(row["captions"]),
                phrases=tuple(phrases),
                queries=tuple(evaluation_set.queries(row, phrases)),
                present=evaluation_set.image_of(row).present,
            )
            if image.types_by_text:
                images.append(image)
    return {image.sample_id: image for image in choose_absent_phrases(images).values()}


def model_steps(evaluation_set: EvaluationSet) -> HeatMapSteps:
    """Return the dataset's own reader, model and regions, with its calibration if its scores have one.

    Raise as `EvaluationSet.full_steps`.
    """
    dataset = evaluation_set.dataset
    steps = evaluation_set.full_steps()
    has_scores = dataset.manifest.get("calibration") is not None
    if steps.calibration is not None and (has_scores or not steps.is_calibrated):
        return steps
    decisions = Decisions.stored_in(dataset.manifest["run"])
    return steps.with_calibration(read_presence(dataset.path / PRESENCE_FILE, decisions.presence_digest))


def absent_evaluation(evaluation_set: EvaluationSet, console: Console) -> AbsentFigures:
    """Return the figures of `absent_figures`; computes heat maps of absent phrases. Raise as `model_steps`."""
    say(console, "asking each image for phrases of other images: loading the model")
    images_by_name = query_images(evaluation_set)
    steps = model_steps(evaluation_set)
    phrases = {name: image.all_phrases for name, image in images_by_name.items()}
    config = steps.model_stage.config
    # Contrast compares the maps that become regions. The other phrases must not change them.
    explainer = config.explainer.model_copy(update={"contrast": 0.0})
    plain_stage = ExplainStage(
        config.model_copy(update={"explainer": explainer}), presence=steps.model_stage.presence
    )
    records = process_input(evaluation_set.reader, [steps.prepare_stage], phrases, console)
    judge = TextJudge(steps)
    signals: list[ImageSignals] = []
    texts: list[tuple[int, str]] = []
    pairs: list[Pair] = []
    for record, record_signals in signals_of(plain_stage, records, console):
        image = images_by_name[record.sample.sample_id]
        signals.append(record_signals)
        texts += [(image.number, heat_map.text) for heat_map in record.heat_maps]
        pairs += own_pairs(image, judge.judge_phrases(image, record))
        pairs += foreign_pairs(image, judge.judge_foreign(image, record))
    if not pairs:
        return absent_figures([])
    z_score = dict(zip(texts, ClipFeatures.of(signals).ranks.tolist(), strict=True))
    return absent_figures([replace(pair, z_score=z_score[pair.image, pair.text]) for pair in pairs])


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedText:
    """What a model says of a text and an image, in fields as those of `Pair`. `answers` are all regions of the text."""

    similarity: float
    presence: float | None
    presence_of_group: float | None
    answers: tuple[Answer, ...]
    is_written: bool

    def pair(self, image: QueriedImage, kind: str, text: str, **fields: Any) -> Pair:
        """Return the pair of the text and its image, without `z_score`."""
        return Pair(
            image=image.number,
            kind=kind,
            text=text,
            similarity=self.similarity,
            presence=self.presence,
            presence_of_group=self.presence_of_group,
            is_written=self.is_written,
            **fields,
        )


class TextJudge:
    """Judges the texts that an image is asked for as a run would, if half of all phrases were absent."""

    def __init__(self, steps: HeatMapSteps) -> None:
        self._config = steps.regions_stage.config
        self._contrast = steps.model_stage.config.explainer.contrast
        self._calibration = steps.calibration
        config = self._config.model_copy(update={"absent_share": EVEN_SHARE, "min_presence": None})
        self._stage = RegionsStage(config, self._calibration)
        # A phrase of another image names none of this one's objects.
        ungrouped = config.model_copy(update={"group": "none"})
        self._ungrouped_stage = RegionsStage(ungrouped, self._calibration)

    def judge_phrases(self, image: QueriedImage, record: Record) -> dict[str, JudgedText]:
        """Judge the phrases of an image, whose record has the maps of all phrases, without contrast."""
        record = replace(self._with_contrast(image, record), phrases=image.phrases)
        maker = self._stage.maker
        presences = maker.presences_of(record, maker.groups_of(record))
        pairs = zip((phrase.text for phrase in record.phrases), presences, strict=True)
        # A text that names several objects has the highest presence.
        highest = dict(sorted(pairs, key=lambda pair: pair[1] or 0.0))
        answers = _answers(self._stage, record)
        return {
            heat_map.text: self._judged(heat_map, highest[heat_map.text], answers.get(heat_map.text, ()))
            for heat_map in record.heat_maps
            if heat_map.text in highest
        }

    def judge_foreign(self, image: QueriedImage, record: Record) -> dict[str, JudgedText]:
        """Judge the absent phrases of an image in the same way. The random ones alone have answers."""
        presence = {heat_map.text: self._presence_of(heat_map) for heat_map in record.heat_maps}
        shown = replace(self._with_contrast(image, record), phrases=image.absent["random"])
        answers = _answers(self._ungrouped_stage, shown)
        heat_maps = {heat_map.text: heat_map for heat_map in record.heat_maps}
        judged: dict[str, JudgedText] = {}
        for phrase in chain(*image.absent.values()):
            voters = [phrase]
            if self._config.group == "things":
                voters += image.voters.get(phrase.text, ())
            votes = [presence[voter.text] for voter in voters]
            shared = share_presences(voters, [0] * len(voters), votes)[0]
            ungrouped = presence[phrase.text]
            regions = answers.get(phrase.text, ())
            if ungrouped and shared is not None:
                regions = tuple(
                    replace(region, score=region.score * shared / ungrouped) for region in regions
                )
            judged[phrase.text] = self._judged(heat_maps[phrase.text], shared, regions)
        return judged

    def _judged(
        self, heat_map: HeatMap, presence_of_group: float | None, answers: tuple[Answer, ...]
    ) -> JudgedText:
        return JudgedText(
            similarity=heat_map.similarity,
            presence=self._presence_of(heat_map),
            presence_of_group=presence_of_group,
            answers=answers,
            is_written=not self._config.is_absent(presence_of_group),
        )

    def _presence_of(self, heat_map: HeatMap) -> float | None:
        if heat_map.presence is None or self._calibration is None:
            return None
        return at_share(heat_map.presence, self._calibration.absent_share, EVEN_SHARE)

    def _with_contrast(self, image: QueriedImage, record: Record) -> Record:
        """Return the record with the maps that become regions."""
        texts = {phrase.text for phrase in (*image.phrases, *image.absent["random"])}
        maps = [heat_map for heat_map in record.heat_maps if heat_map.text in texts]
        # No caption is said to be another image's: the phrases that are asked for are of all images.
        return replace(record, heat_maps=tuple(subtract_others(maps, self._contrast)), caption_presences=())


def own_pairs(image: QueriedImage, judged: Mapping[str, JudgedText]) -> Iterator[Pair]:
    """Yield the pairs of an image and the phrases of it that the ground truth knows, present or absent."""
    boxes_by_text: dict[str, list[Box]] = {}
    for query in image.queries:
        if query.phrase is not None and query.phrase in judged:
            boxes = boxes_by_text.setdefault(query.phrase, [])
            boxes += () if query.target is None else query.target.boxes_xywh_px
    for text, boxes in boxes_by_text.items():
        kind = "there" if boxes else "said"
        different_boxes = tuple(dict.fromkeys(boxes))
        yield judged[text].pair(
            image, kind, text, answers=judged[text].answers, boxes_xywh_px=different_boxes
        )


def foreign_pairs(image: QueriedImage, judged: Mapping[str, JudgedText]) -> Iterator[Pair]:
    """Yield the pairs of an image and its absent phrases."""
    for kind, phrases in image.absent.items():
        for phrase in phrases:
            text = judged[phrase.text]
            yield text.pair(
                image,
                kind,
                phrase.text,
                answers=text.answers if kind == "random" else (),
                may_be_synonym=any(
                    may_be(phrase.head, other.head, phrase.language, other.language)
                    for other in image.phrases
                ),
            )


def _answers(stage: RegionsStage, record: Record) -> dict[str, tuple[Answer, ...]]:
    regions: dict[str, dict[Answer, None]] = {}
    for region in stage.process([record])[0].regions:
        fields = {name: getattr(region, name) for name in ("box_xywh_px", "mask", "score", "similarity")}
        regions.setdefault(record.phrases[region.phrase_index].text, {})[Answer(**fields)] = None
    return {text: tuple(answers) for text, answers in regions.items()}
