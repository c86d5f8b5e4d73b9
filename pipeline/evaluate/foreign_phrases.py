"""Phrases of other images, asked of the images of a dataset: for `eval --absent` and `calibrate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from rich.console import Console

from phrasebox.pipeline.evaluate.absent import QueriedImage, choose_absent_phrases
from phrasebox.pipeline.evaluate.absent_figures import AbsentFigures, Pair, absent_figures
from phrasebox.pipeline.evaluate.estimates import Estimates, fit_with_folds, presence_area
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet, phrases_of, process_input
from phrasebox.pipeline.evaluate.matching import Answer
from phrasebox.pipeline.output.backup import PRESENCE_FILE
from phrasebox.pipeline.output.decisions import Decisions
from phrasebox.pipeline.run.presence_fit import FEWEST_PHRASES, may_be, read_presence, signals_of
from phrasebox.pipeline.run.steps import HeatMapSteps
from phrasebox.pipeline.terminal import say
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import Phrase, Record
from phrasebox.stages.explain.stage import ExplainStage, subtract_others
from phrasebox.stages.regions.maker import RegionMaker, share_presences
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.presence import FEATURES, ImageStatistics, Presence, Signals, features_of
from phrasebox.stages.scores.score import at_share
from phrasebox.stages.truth.ground_truth import TruthTarget

PHRASE_KINDS: Final = ("present phrases", "absent phrases")


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
            stored = phrases_of([*row["annotations"], *row["absent"]] if entries is None else entries)
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
    if dataset.manifest.get("calibration") is not None or (
        steps.calibration is not None and not steps.is_calibrated
    ):
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
    signals: list[Signals] = []
    texts: list[tuple[int, str]] = []
    pairs: list[Pair] = []
    for record, record_signals in signals_of(plain_stage, records, console):
        image = images_by_name[record.sample.sample_id]
        signals.append(record_signals)
        texts += [(image.number, heat_map.text) for heat_map in record.heat_maps]
        pairs += _pairs(image, record, steps)
    if not pairs:
        return absent_figures([])
    features = features_of(ImageStatistics.of(np.stack([part.embedding for part in signals])), signals)
    z_score = dict(zip(texts, features[:, FEATURES.index("deviation")].tolist(), strict=True))
    return absent_figures([replace(pair, z_score=z_score[pair.image, pair.text]) for pair in pairs])


def _pairs(image: QueriedImage, record: Record, steps: HeatMapSteps) -> Iterator[Pair]:
    """Yield the pairs of one image, without `z_score`; the record has the maps of all phrases, without contrast."""
    # Half of the phrases that are asked for are absent, and a phrase of another image names none of this one's objects.
    config = steps.regions_stage.config.model_copy(update={"absent_share": 0.5, "min_presence": None})
    calibration = steps.calibration
    stage = RegionsStage(config, calibration)
    ungrouped_stage = RegionsStage(config.model_copy(update={"group": "none"}), calibration)
    similarity = {heat_map.text: heat_map.similarity for heat_map in record.heat_maps}
    presence: dict[str, float | None] = {
        heat_map.text: None
        if heat_map.presence is None or calibration is None
        else at_share(heat_map.presence, calibration.absent_share, 0.5)
        for heat_map in record.heat_maps
    }
    targets_by_text: dict[str, list[TruthTarget | None]] = {}
    for query in image.queries:
        if query.phrase in similarity:
            targets_by_text.setdefault(query.phrase, []).append(query.target)
    cut_texts = {phrase.text for phrase in (*image.phrases, *image.absent["random"])}
    maps = [heat_map for heat_map in record.heat_maps if heat_map.text in cut_texts]
    cut_maps = tuple(subtract_others(maps, steps.model_stage.config.explainer.contrast))
    # No caption is said to be another image's: the phrases that are asked for are of all images.
    record = replace(record, heat_maps=cut_maps, caption_presences=())
    own_record = replace(record, phrases=image.phrases)
    group_presences = _likeliest(stage.maker, own_record)
    answers_by_text = _answers(stage, own_record)

    def pair(
        kind: str, text: str, group_presence: float | None, answers: tuple[Answer, ...], **fields: Any
    ) -> Pair:
        return Pair(
            image=image.number,
            text=text,
            kind=kind,
            similarity=similarity[text],
            presence=presence[text],
            presence_of_group=group_presence,
            answers=answers,
            is_written=not steps.regions_stage.config.is_absent(group_presence),
            **fields,
        )

    for text, targets in targets_by_text.items():
        boxes = [box for target in targets if target is not None for box in target.boxes_xywh_px]
        kind = "there" if boxes else "said"
        answers = answers_by_text.get(text, ())
        yield pair(kind, text, group_presences[text], answers, boxes_xywh_px=tuple(dict.fromkeys(boxes)))
    answers_by_text = _answers(ungrouped_stage, replace(record, phrases=image.absent["random"]))
    for kind, phrase in ((kind, phrase) for kind, phrases in image.absent.items() for phrase in phrases):
        own_presence = presence[phrase.text]
        voters = (phrase, *image.voters.get(phrase.text, ())) if config.group == "things" else (phrase,)
        votes = [presence[voter.text] for voter in voters]
        group_presence = share_presences(voters, [0] * len(voters), votes)[0]
        answers = answers_by_text.get(phrase.text, ()) if kind == "random" else ()
        if own_presence and group_presence is not None:
            answers = tuple(
                replace(answer, score=answer.score * group_presence / own_presence) for answer in answers
            )
        may_be_synonym = any(may_be(phrase.head, other.head) for other in image.phrases)
        yield pair(kind, phrase.text, group_presence, answers, may_be_synonym=may_be_synonym)


def _answers(stage: RegionsStage, record: Record) -> dict[str, tuple[Answer, ...]]:
    regions: dict[str, dict[Answer, None]] = {}
    for region in stage.process([record])[0].regions:
        fields = {name: getattr(region, name) for name in ("box_xywh_px", "mask", "score", "similarity")}
        regions.setdefault(record.phrases[region.phrase_index].text, {})[Answer(**fields)] = None
    return {text: tuple(answers) for text, answers in regions.items()}


def _likeliest(maker: RegionMaker, record: Record) -> dict[str, float | None]:
    """Return the presence of each text of a record: the highest, if the text names several objects."""
    presences = maker.presences_of(record, maker.groups_of(record))
    pairs = zip((phrase.text for phrase in record.phrases), presences, strict=True)
    return dict(sorted(pairs, key=lambda pair: pair[1] or 0.0))


def fit_presence_to_truth(
    evaluation_set: EvaluationSet, console: Console
) -> tuple[Presence, Estimates, dict[tuple[int, str], float]]:
    """Fit presence to present phrases, to phrases of other images, and to phrases that the ground truth calls absent.

    Also return the figures, and the presence of each image's own texts. The figures are
    `presence_auc` and `similarity_auc` on images that the regression was not fitted to; the
    statistics of the images come from all images.

    Raise InputError if the phrases are too few or one-sided, and as `model_steps`.
    """
    images_by_name = query_images(evaluation_set)
    check_enough(sum(len(image.judged_texts) for image in images_by_name.values()))
    phrases = {name: [*image.phrases, *image.absent["random"]] for name, image in images_by_name.items()}
    signals: list[Signals] = []
    entries: list[tuple[int, str, bool, bool]] = []
    steps = model_steps(evaluation_set)
    records = process_input(evaluation_set.reader, [steps.prepare_stage], phrases, console)
    for record, record_signals in signals_of(steps.model_stage, records, console):
        signals.append(record_signals)
        image = images_by_name[record.sample.sample_id]
        entries += [
            (image.number, text, text in image.types_by_text, text in image.judged_texts)
            for text in dict.fromkeys(phrase.text for phrase in record.phrases)
        ]
    check_enough(sum(is_judged for *_, is_judged in entries))
    images = ImageStatistics.of(np.stack([part.embedding for part in signals]))
    all_features = features_of(images, signals)
    all_numbers, texts, is_present, is_judged = map(np.array, zip(*entries, strict=True))
    features = all_features[is_judged]
    labels = is_present[is_judged]
    numbers = all_numbers[is_judged]
    fit, probabilities = fit_with_folds(features, labels, numbers, PHRASE_KINDS)
    presence = Presence(
        images=images, bias=fit.bias, **fit.by_name(FEATURES), absent_share=1.0 - float(labels.mean())
    )
    figures = {
        "presence_auc": presence_area(probabilities, labels, numbers),
        "similarity_auc": presence_area(features[:, 0], labels, numbers),
    }
    # Six weights and some thousand phrases: what the fit says of its own phrases is hardly flattered.
    keys = zip(all_numbers.tolist(), texts.tolist(), strict=True)
    return presence, figures, dict(zip(keys, fit.probability(all_features).round(6).tolist(), strict=True))


def check_enough(phrases: int) -> None:
    """Raise InputError if so few phrases are judged that a fit says more about chance than about the model."""
    if phrases < FEWEST_PHRASES:
        raise InputError(
            f"presence cannot be fitted: fewer than {FEWEST_PHRASES} phrases with a known place"
        )
