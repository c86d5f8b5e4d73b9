"""The stage: batches do not matter, it runs ahead of its device, and it goes on where a memory is full."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from phrasebox.pipeline.run.stage_calls import rows_per_call
from phrasebox.stages.contract.errors import ConfigError, DeviceFault, ResourceError, RowError, WeightsError
from phrasebox.stages.contract.records import HeatMap, Phrase, Pixels, Record, Sample
from phrasebox.stages.explain.base import Match
from phrasebox.stages.explain.grad_eclip import GradEclipConfig
from phrasebox.stages.explain.stage import (
    AHEAD,
    BATCH_SIZES,
    ExplainStage,
    ExplainStageConfig,
    subtract_others,
)
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from tests.build.datasets import Json
from tests.closeness import assert_close
from tests.messages import expect_error
from tests.stages.model.saved import save_model

PHRASES = ["red car", "dog", "two green fish", "house", "a very tall man", "sky", "tree", "cat", "boat"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A tiny model in files, four images a batch."""
    return save_model(tmp_path_factory.mktemp("model"))[1].model_copy(update={"batch_size": 4})


def set_up(
    model: ModelConfig, *, keep_pixels: bool = False, caption_score: bool = True, **settings: Any
) -> ExplainStage:
    config = ExplainStageConfig(
        model=model,
        description=describe(model),
        explainer=GradEclipConfig(**settings),
        keep_pixels=keep_pixels,
        caption_score=caption_score,
    )
    stage = ExplainStage(config)
    stage.setup()
    return stage


@pytest.fixture(scope="module")
def stage(model: ModelConfig) -> Iterator[ExplainStage]:
    stage = set_up(model, keep_pixels=True)
    yield stage
    stage.teardown()


def make_record(number: int, texts: Sequence[str] = ("dog",), size: tuple[int, int] = (32, 32)) -> Record:
    rgb = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    phrases = tuple(Phrase(text=text, caption_index=0, start=0, end=3, head="dog") for text in texts)
    sample = Sample(sample_id=str(number), source="test")
    return Record(sample=sample, width_px=320, height_px=320, phrases=phrases, pixels=Pixels(rgb=rgb))


def make_records(most: int = 9) -> list[Record]:
    """Fifteen records with none to `most` phrases, some twice; one failed, one has no pixels."""
    records = [make_record(n, [*PHRASES[: n % (most + 1)], *PHRASES[: n % 3]]) for n in range(15)]
    records[4] = replace(records[4], error=RowError(reason="bad_image", detail="here"))
    records[7] = replace(records[7], pixels=None)
    return records


def assert_same(actual: Sequence[Record], expected: Sequence[Record]) -> None:
    """The same texts and faults, and maps to 1e-4 of their largest value."""
    for actual_record, expected_record in zip(actual, expected, strict=True):
        pairs = zip(actual_record.heat_maps, expected_record.heat_maps, strict=True)
        for actual_map, expected_map in pairs:
            assert (actual_map.text, actual_map.fault) == (expected_map.text, expected_map.fault)
            assert_close(actual_map.values, expected_map.values, 1e-4)
            assert actual_map.similarity == pytest.approx(expected_map.similarity, abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"variant": "authors"}])
def test_batches_and_their_order_do_not_matter(model: ModelConfig, settings: Json) -> None:
    sizes = [(32, 32)]
    if "variant" in settings:
        model = model.model_copy(update={"batch_size": None})
        sizes = [(32, 32), (24, 40), (32, 32), (40, 24), (24, 40)]
    stage = set_up(model, **settings)
    records = [
        replace(record, pixels=make_record(number, size=sizes[number % len(sizes)]).pixels)
        for number, record in enumerate(make_records())
    ]
    singles = [answer for record in records for answer in stage.process([record])]
    assert_same([answer for i in range(0, 15, 7) for answer in stage.process(records[i : i + 7])], singles)
    assert_same(stage.process(records[::-1])[::-1], singles)
    assert stage.take_forwards().images == 3 * sum(bool(answer.heat_maps) for answer in singles)
    assert stage.take_forwards().images == 0, "reported once"
    stage.teardown()


def test_one_map_for_each_unique_text(stage: ExplainStage) -> None:
    records = make_records()
    for before, after in zip(records, stage.process(records), strict=True):
        if before.error is not None or before.pixels is None or not before.phrases:
            assert after is before
            continue
        texts = list(dict.fromkeys(phrase.text for phrase in before.phrases))
        assert [heat_map.text for heat_map in after.heat_maps] == texts
        assert {heat_map.values.shape for heat_map in after.heat_maps} == {(4, 4)}
        assert (after.phrases, after.pixels, after.sample) == (before.phrases, before.pixels, before.sample)
    assert stage.process([]) == []


def test_the_score_of_a_caption_is_the_mean_of_its_cosine_and_those_of_its_phrases(
    stage: ExplainStage,
) -> None:
    plain = make_record(0, ["dog", "red car", "dog"])
    phrases = [
        replace(phrase, caption_index=index) for phrase, index in zip(plain.phrases, (0, 0, 2), strict=True)
    ]
    sample = replace(plain.sample, captions=("a dog by a red car", " ", "a dog"))
    (answer,) = stage.process([replace(plain, sample=sample, phrases=tuple(phrases))])
    dog, car = (heat_map.similarity for heat_map in answer.heat_maps)
    texts = [
        replace(phrase, text=caption) for phrase, caption in zip(phrases, sample.captions, strict=True)
    ]
    (whole,) = stage.process([replace(plain, phrases=tuple(texts))])
    captions = {heat_map.text: heat_map.similarity for heat_map in whole.heat_maps}
    first, second, third = answer.caption_scores
    assert first == pytest.approx((captions["a dog by a red car"] + dog + car) / 3, abs=1e-5)
    assert second is None
    assert third == pytest.approx((captions["a dog"] + dog) / 2, abs=1e-5)
    assert answer.caption_presences == (None, None, None)


def test_captions_without_a_score_are_not_embedded(
    stage: ExplainStage, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where signals are collected they are, since presence is fitted to them."""
    plain = make_record(0, ["dog", "red car"])
    record = replace(plain, sample=replace(plain.sample, captions=("a dog by a red car", " ")))
    without = set_up(model, keep_pixels=True, caption_score=False)
    texts: list[str] = []
    encode = without._explainer.model.encode_text

    def record_texts(batch: Sequence[str]) -> torch.Tensor:
        texts.extend(batch)
        return encode(batch)

    monkeypatch.setattr(without._explainer.texts, "model", SimpleNamespace(encode_text=record_texts))
    (answer,) = without.process([record])
    assert texts == ["dog", "red car"]
    assert answer.caption_scores == answer.caption_presences == ()
    (other,) = stage.process([record])
    for heat_map, other_map in zip(answer.heat_maps, other.heat_maps, strict=True):
        assert heat_map.similarity == pytest.approx(other_map.similarity, rel=1e-5)
        assert_close(heat_map.values, other_map.values)
    without.signals = {}
    without.process([record])
    assert len(without.signals[record.sample.key].captions.cosines) == 2
    assert "a dog by a red car" in texts


def test_captions_stay_in_no_cache(model: ModelConfig) -> None:
    """They are used in a single batch, and those of a long run would fill the memory."""
    stage = set_up(model, blocks=1)
    records = [
        replace(
            record := make_record(number, PHRASES[: number % 3 + 1]),
            sample=replace(record.sample, captions=(f"caption {number}", "red car ", "another")),
        )
        for number in range(40)
    ]
    answers = stage.process(records)
    assert all(len(answer.caption_scores) == 3 for answer in answers)
    assert {*stage._explainer.texts._rows} == {*PHRASES[:3]}


def test_pixels_stay_only_if_asked_for_and_the_device_s_batch_size_holds_if_none_is_given(
    stage, model
) -> None:
    before = [make_record(0, ["dog"]), make_record(1, [])]
    other = set_up(model.model_copy(update={"batch_size": None}))
    for explain_stage, keeps in ((stage, True), (other, False)):
        after = explain_stage.process(before)
        assert [record.pixels for record in after] == [
            record.pixels if keeps else None for record in before
        ]
        assert [len(record.heat_maps) for record in after] == [1, 0]
    assert other.forward_batch_size() == other.forward_batch_size("cpu") == BATCH_SIZES["cpu"]


@pytest.mark.parametrize(
    ("variant", "batch_size", "cpu", "cuda"),
    [("recommended", None, 32, 256), ("recommended", 24, 48, 96), ("authors", None, 32, 32)],
)
def test_a_gpu_gets_several_batches_a_call_and_a_cpu_what_it_got(
    variant: Any, batch_size: Any, cpu, cuda
) -> None:
    config = ExplainStageConfig(
        model=ModelConfig(batch_size=batch_size), explainer=GradEclipConfig(variant=variant)
    )
    stage = pickle.loads(pickle.dumps(ExplainStage(config)))
    assert [rows_per_call(stage, "cpu"), rows_per_call(stage, "cuda")] == [cpu, cuda]


def test_setup_says_what_is_wrong(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with expect_error(WeightsError, key="model.weights"):
        set_up(model.model_copy(update={"weights": Path("none.safetensors")}))
    with expect_error(ConfigError, key="explain.blocks"):
        set_up(model, blocks=5)
    with expect_error(ConfigError, key="model.batch_size"):
        set_up(model, variant="authors")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with expect_error(ResourceError, key="model.device"):
        set_up(model.model_copy(update={"device": "cuda"}))


# Contrast


def heat_map(*values: float, fault: str = "") -> HeatMap:
    return HeatMap(text="dog", values=np.array([values], np.float32), similarity=0.2, fault=fault)


def test_maps_of_one_form_keep_it_and_those_without_others_stay() -> None:
    weak = heat_map(3, 1, 2)
    broken = heat_map(0, 0, 0, fault="empty")
    for result in subtract_others([weak, heat_map(6, 2, 4)], 0.25):
        assert result.values / result.values.max() == pytest.approx(weak.values / 3)
    for maps in ([], [weak], [weak, broken]):
        assert subtract_others(maps, 0.5) == maps
    assert subtract_others([weak, heat_map(0, 1, 0)], 0.0)[0] is weak


@pytest.mark.parametrize("count", [2, 3, 9])
def test_the_hottest_of_the_others_counts(count: int) -> None:
    rng = np.random.default_rng(count)
    maps = [
        replace(heat_map(), values=rng.lognormal(0, 2, (7, 5)).astype(np.float32)) for _ in range(count)
    ]
    maps[1] = replace(maps[0], text="the same heat")
    maps.insert(1, heat_map(0, fault="empty"))
    shares = [source.values / source.values.max() for source in maps if not source.fault]
    results = subtract_others(maps, 0.4)
    for row, source in enumerate(source for source in maps if not source.fault):
        highest = np.max([share for number, share in enumerate(shares) if number != row], axis=0)
        expected = np.maximum(shares[row] - np.float32(0.4) * highest, 0) * source.values.max()
        assert np.array_equal(results[row + (row > 0)].values, expected)
    assert results[1] is maps[1]


def test_maps_are_contrasted_with_the_others_of_their_image(
    stage: ExplainStage, model: ModelConfig
) -> None:
    records = [make_record(0, ["dog", "red car"]), make_record(1)]
    plain = stage.process(records)
    against = set_up(model, contrast=0.25).process(records)
    assert_same(
        against,
        [replace(record, heat_maps=tuple(subtract_others(record.heat_maps, 0.25))) for record in plain],
    )
    assert against[0].heat_maps[0].values.sum() < plain[0].heat_maps[0].values.sum()


# One batch ahead of the device


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
LATE = RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
BROKEN = RuntimeError("CUDA error: device-side assert triggered")


class TalkingDevice:
    """Takes the place of an explainer on a device.

    `events` has "launch 0", "wait 0" and so on, by number of the batch, in order; `faults` names those that raise.
    """

    one_by_one = False

    def __init__(self, faults: dict[str, RuntimeError] | None = None) -> None:
        self.events: list[str] = []
        self.sizes: list[int] = []  # images of each batch
        self.learnt: list[list[str]] = []  # texts that were embedded together
        self.texts = SimpleNamespace(embed_ahead=self.learnt.append, set_aside=lambda _: None)
        self.faults = faults or {}

    def record_event(self, what: str) -> None:
        self.events.append(what)
        if what in self.faults:
            raise self.faults[what]

    def compare(self, images: Sequence[Any], texts: Any, captions: object, **kinds: object) -> Any:
        """The similarity of an image and its only text is the sum of the pixels."""
        self.sizes.append(len(images))
        sums = [float(image.sum()) for image in images]
        matches = [{text: Match(total, None)} for total, (text,) in zip(sums, texts, strict=True)]
        return SimpleNamespace(matches=SimpleNamespace(captions=captions, wait=lambda presence: matches))

    def launch(self, comparison: Any, phrases: Any) -> Any:
        number = len(self.sizes) - 1
        self.record_event(f"launch {number}")

        def wait(matches: Any) -> Any:
            self.record_event(f"wait {number}")
            ones = np.ones((1, 1), np.float32)
            return [
                [
                    HeatMap(text=text, values=ones, similarity=match.cosine)
                    for text, match in of_image.items()
                ]
                for of_image in matches
            ]

        return SimpleNamespace(wait=wait)


def stage_on(device: TalkingDevice, batch_size: int) -> ExplainStage:
    stage = ExplainStage(ExplainStageConfig(model=ModelConfig(batch_size=batch_size)))
    stage._batch_size = batch_size
    stage._explainer = device  # type: ignore[assignment]
    return stage


def assert_answered(stage: ExplainStage, count: int) -> None:
    """Each record gets the map of its own pixels and phrase."""
    records = [make_record(number, (f"dog {number}",)) for number in range(count)]
    answers = stage.process(records)
    for number, (record, answer) in enumerate(zip(records, answers, strict=True)):
        (heat_map,) = answer.heat_maps
        assert (heat_map.text, heat_map.similarity) == (f"dog {number}", float(record.pixels.rgb.sum()))


def most_pending(events: Sequence[str]) -> int:
    """The largest number of batches that were launched and not waited for."""
    return max(itertools.accumulate(1 if what.startswith("launch") else -1 for what in events))


def test_the_next_batch_is_launched_before_the_last_one_is_waited_for() -> None:
    device = TalkingDevice()
    stage = stage_on(device, 8)
    assert_answered(stage, 37)
    overlapped = [event for number in range(4) for event in (f"launch {number + 1}", f"wait {number}")]
    assert device.events == ["launch 0", *overlapped, "wait 4"]
    assert device.sizes == [8] * 4 + [5], "an image is computed once"
    assert most_pending(device.events) == AHEAD == 2
    assert_answered(stage, 8)
    assert device.events[-2:] == ["launch 5", "wait 5"], "nothing is under way between calls"


def test_phrases_of_a_small_batch_are_learnt_with_those_of_the_next_and_each_once() -> None:
    for batch_size, expected in ((8, [32, 18]), (64, [50]), (40, [40, 10])):
        device = TalkingDevice()
        assert_answered(stage_on(device, batch_size), 50)
        assert [len(texts) for texts in device.learnt] == expected
        assert [text for texts in device.learnt for text in texts] == [
            f"dog {number}" for number in range(50)
        ]


def test_phrases_of_upcoming_records_are_learnt_with_those_of_the_next_call_once() -> None:
    device = TalkingDevice()
    stage = stage_on(device, 8)
    stage.upcoming = [make_record(number, [f"dog {number}"]) for number in range(8, 32)]
    assert_answered(stage, 8)
    assert_answered(stage, 8)
    assert [len(texts) for texts in device.learnt] == [32, 8]


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, LATE], ids=["at once", "late"])
@pytest.mark.parametrize("what", ["launch 0", "wait 0", "launch 1", "wait 1", "launch 2", "wait 2"])
def test_memory_that_is_full_at_launch_or_later_halves_the_batch_once(
    what: str, error: RuntimeError, caplog
) -> None:
    device = TalkingDevice({what: error})
    assert_answered(stage_on(device, 8), 24)
    failed = device.events.index(what)
    waited = [event for event in device.events[:failed] if event.startswith("wait")]
    assert device.events.count(what) == 1
    before = [int(event.split()[1]) for event in device.events[: failed + 1] if event.startswith("launch")]
    assert {device.sizes[number] for number in before} == {8}
    assert set(device.sizes[len(before) :]) == {4}, "a batch that was under way is computed again in halves"
    assert sum(device.sizes[len(before) :]) == 24 - 8 * len(waited), "an answered one is not"
    assert most_pending(device.events[failed + 1 :]) <= AHEAD
    assert [record.message for record in caplog.records] == [
        "GPU memory is full: going on with batches of 4 images"
    ]


@pytest.mark.parametrize("what", ["launch 0", "wait 0", "launch 1", "wait 1"])
def test_another_fault_is_raised_wherever_it_shows(what: str) -> None:
    device = TalkingDevice({what: BROKEN})
    with expect_error(DeviceFault):
        assert_answered(stage_on(device, 8), 24)
    assert device.events[-1] == what, "nothing is launched behind it"


@pytest.mark.parametrize("what", ["launch 1", "wait 0"])
def test_two_images_that_do_not_fit_together_are_computed_one_behind_the_other(what: str) -> None:
    device = TalkingDevice({what: OUT_OF_MEMORY})
    assert_answered(stage_on(device, 1), 3)
    assert most_pending(device.events[device.events.index(what) + 1 :]) == 1
