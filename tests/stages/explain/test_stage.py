from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines.inline import batch_rows
from stages.contract.errors import ConfigError, ResourceError, RowError, WeightsError
from stages.contract.records import HeatMap, Phrase, Pixels, Record, Sample
from stages.explain.base import Explained
from stages.explain.grad_eclip import GradEclipConfig
from stages.explain.stage import BATCH_SIZES, ExplainStage, ExplainStageConfig, contrasted
from stages.shared.model.config import ModelConfig
from tests.stages.shared.model.saved import save_model

PHRASES = ["red car", "dog", "two green fish", "house", "a very tall man", "sky", "tree", "cat", "boat"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A tiny model in files, four images a batch."""
    config = save_model(tmp_path_factory.mktemp("model"))[1]
    return config.model_copy(update={"batch_size": 4})


@pytest.fixture(scope="module")
def stage(model: ModelConfig) -> Iterator[ExplainStage]:
    stage = ExplainStage(ExplainStageConfig(model=model, keep_pixels=True))
    stage.setup()
    yield stage
    stage.teardown()


def make_record(number: int, texts: Sequence[str] = ("dog",), size: tuple[int, int] = (32, 32)) -> Record:
    rgb = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    phrases = tuple(Phrase(text=text, caption_index=0, start=0, end=3, head="dog") for text in texts)
    sample = Sample(sample_id=str(number), source="test")
    return Record(sample=sample, width_px=320, height_px=320, phrases=phrases, pixels=Pixels(rgb=rgb))


def make_records(most: int = 9) -> list[Record]:
    """Fifteen records with none to `most` phrases, some twice; one failed, one without pixels."""
    records = [make_record(n, [*PHRASES[: n % (most + 1)], *PHRASES[: n % 3]]) for n in range(15)]
    records[4] = replace(records[4], error=RowError(reason="bad_image", detail="here"))
    records[7] = replace(records[7], pixels=None)
    return records


def in_batches(stage: ExplainStage, records: list[Record], size: int) -> list[Record]:
    return [answer for i in range(0, len(records), size) for answer in stage.process(records[i : i + size])]


def as_bytes(records: list[Record]) -> list[Any]:
    return [[(m.text, m.values.tobytes(), m.similarity, m.fault) for m in record.heat_maps] for record in records]


def orders(stage: ExplainStage, records: list[Record]) -> Iterator[list[Record]]:
    """The answers for the records one by one, seven by seven, all at once, and backwards."""
    for size in (1, 7, len(records)):
        yield in_batches(stage, records, size)
    yield stage.process(records[::-1])[::-1]


def test_batch_sizes_give_the_same_bytes(stage: ExplainStage) -> None:
    first, *others = (as_bytes(answers) for answers in orders(stage, make_records(most=8)))
    assert all(other == first for other in others)


def test_neighbours_with_more_phrases_than_a_step_give_the_same_bytes(model: ModelConfig) -> None:
    stage = ExplainStage(ExplainStageConfig(model=model, explainer=GradEclipConfig(phrases_per_step=2)))
    stage.setup()
    first, *others = (as_bytes(answers) for answers in orders(stage, make_records()))
    stage.teardown()
    assert all(other == first for other in others)


def test_batch_sizes_agree_on_the_full_path(model: ModelConfig) -> None:
    """To 1e-5 of a map's largest value: float32 products of all tokens depend on an image's place in the batch."""
    stage = ExplainStage(ExplainStageConfig(model=model, explainer=GradEclipConfig(path="full", blocks=1)))
    stage.setup()
    first, *others = orders(stage, make_records())
    stage.teardown()
    for other in others:
        for a, b in zip(first, other, strict=True):
            for mine, theirs in zip(a.heat_maps, b.heat_maps, strict=True):
                assert (mine.text, mine.fault) == (theirs.text, theirs.fault)
                assert np.abs(mine.values - theirs.values).max() <= 1e-5 * mine.values.max()
                assert mine.similarity == pytest.approx(theirs.similarity, abs=1e-6)


@pytest.fixture
def authors(model: ModelConfig) -> ExplainStage:
    """A stage whose images keep their aspect ratio."""
    return ExplainStage(
        ExplainStageConfig(
            model=model.model_copy(update={"batch_size": None}), explainer=GradEclipConfig(variant="authors")
        )
    )


def test_images_of_mixed_sizes_give_the_same_bytes_in_every_batch_without_filling(authors: ExplainStage) -> None:
    sizes = [(32, 32), (24, 40), (32, 32), (40, 24), (24, 40)]
    records = [make_record(n, PHRASES[: n % 4 + 1], sizes[n % 5]) for n in range(15)]
    authors.setup()
    first, *others = (as_bytes(answers) for answers in orders(authors, records))
    assert all(other == first for other in others)
    forwards = authors.take_forwards()
    assert (forwards.images, forwards.computed) == (60, 60)
    authors.teardown()


@dataclass
class Ready:
    """A batch that is computed already."""

    explained: Explained
    embedding: None = None

    def wait(self) -> Explained:
        return self.explained


class CountingExplainer:
    """Takes the place of an explainer where only the shapes of what it is asked for matter."""

    def __init__(self) -> None:
        self.images = 0

    def learn(self, phrases: Sequence[Sequence[str]]) -> None:
        """It knows no texts."""

    def started(self, rgb: Any, phrases: Sequence[Sequence[str]]) -> Ready:
        self.images += len(rgb)
        zeros = np.zeros((1, 1), np.float32)
        maps = [
            [HeatMap(text=text, values=zeros, similarity=0.0, fault="empty") for text in texts] for texts in phrases
        ]
        return Ready(Explained(maps, None))


PHOTOGRAPHS = {
    (500, 333): 18,
    (500, 375): 16,
    (333, 500): 8,
    (375, 500): 5,
    (500, 334): 5,
    (500, 332): 4,
    (334, 500): 2,
}
"""(width, height): of how many of 100 photographs in Flickr8k; the others all differ (242 sizes among 1,000)."""


@pytest.mark.parametrize(
    ("variant", "batch_size", "device"),
    [
        ("recommended", None, "cpu"),
        ("recommended", None, "cuda"),
        ("recommended", 64, "cpu"),
        ("recommended", 96, "cuda"),
        ("recommended", 256, "cuda"),
        ("authors", None, "cpu"),
        ("authors", None, "cuda"),
    ],
)
def test_a_thousand_photographs_take_at_most_1_15_forward_passes_each(variant, batch_size, device) -> None:
    """The engines hand over `batch_rows` records at a time; the last of them may be fewer."""
    stage = ExplainStage(
        ExplainStageConfig(model=ModelConfig(batch_size=batch_size), explainer=GradEclipConfig(variant=variant))
    )
    stage._batch_size = stage.batch_rows(device)  # as `setup` leaves it on this device
    stage._explainer = counted = CountingExplainer()  # type: ignore[assignment]
    sizes = [size for size, share in PHOTOGRAPHS.items() for _ in range(share)]
    sizes += [(500, 340 + number) for number in range(100 - len(sizes))]
    rng = np.random.default_rng(0)
    canvas = [sizes[i] for i in rng.integers(0, 100, 1000)] if variant == "authors" else [(224, 224)] * 1000
    records = [make_record(n, size=(height // 16, width // 16)) for n, (width, height) in enumerate(canvas)]
    rows = batch_rows(stage, device)
    assert rows % stage.batch_rows(device) == 0
    answers = in_batches(stage, records, rows)
    assert all(len(answer.heat_maps) == 1 for answer in answers)
    forwards = stage.take_forwards()
    assert forwards.images == 1000
    assert forwards.computed == counted.images <= 1150
    assert stage.take_forwards().images == 0, "told once"


class OtherBits(CountingExplainer):
    """Its maps tell how many images they were computed with, unless it is one of `same`."""

    def __init__(self, same: Sequence[int]) -> None:
        super().__init__()
        self.same, self.seen = same, []  # type: ignore[var-annotated]

    def started(self, rgb: Any, phrases: Sequence[Sequence[str]]) -> Ready:
        self.seen.append(len(rgb))
        maps = super().started(rgb, phrases).wait().heat_maps
        similarity = 0.0 if len(rgb) in self.same else float(len(rgb))
        return Ready(Explained([[replace(each, similarity=similarity) for each in own] for own in maps], None))


@pytest.mark.parametrize(
    ("same", "seen"),
    [
        ((4, 8, 16), [16, 16, 4, 4, 16, 8, 8, 16]),
        ((8, 16), [16, 16, 4, 16, 16, 8, 8, 16]),
        ((16,), [16, 16, 4, 16, 16, 8, 16, 16]),
    ],
)
def test_a_remainder_is_filled_up_to_its_own_size_where_that_gives_the_same_bits(same, seen) -> None:
    stage = ExplainStage(ExplainStageConfig(model=ModelConfig(batch_size=16)))
    stage._batch_size = stage.batch_rows("cpu")
    stage._explainer = explainer = OtherBits(same)  # type: ignore[assignment]
    answers = [
        answer
        for count in (16, 3, 4, 7, 5, 9)
        for answer in stage.process([make_record(number) for number in range(count)])
    ]
    assert {each.similarity for answer in answers for each in answer.heat_maps} == {0.0}
    assert explainer.seen == seen, "each number of images is tried once, and none above half a batch"
    assert stage.take_forwards().computed == sum(seen)


def test_the_first_batch_of_a_worker_tries_nothing() -> None:
    stage = ExplainStage(ExplainStageConfig(model=ModelConfig(batch_size=16)))
    stage._batch_size = stage.batch_rows("cpu")
    stage._explainer = explainer = OtherBits([4, 16])  # type: ignore[assignment]
    stage.process([make_record(0)])
    assert explainer.seen == [16]


def test_a_batch_size_for_images_of_mixed_sizes_is_refused(model: ModelConfig) -> None:
    with pytest.raises(
        ConfigError, match=r"^model\.batch_size: 4 images of different sizes do not fit into one batch;"
    ):
        ExplainStage(ExplainStageConfig(model=model, explainer=GradEclipConfig(variant="authors")))


def test_one_map_for_each_unique_text(stage: ExplainStage) -> None:
    records = make_records()
    for before, after in zip(records, stage.process(records), strict=True):
        if before.error is not None or before.pixels is None or not before.phrases:
            assert after is before
            continue
        assert [heat_map.text for heat_map in after.heat_maps] == list(dict.fromkeys(p.text for p in before.phrases))
        height, width = before.pixels.rgb.shape[:2]
        assert {heat_map.values.shape for heat_map in after.heat_maps} == {(height // 8, width // 8)}
        assert replace(after, heat_maps=()) is not before
        assert (after.phrases, after.pixels, after.sample) == (before.phrases, before.pixels, before.sample)


@pytest.mark.parametrize("keep", [False, True])
def test_pixels_stay_only_if_asked_for(model: ModelConfig, keep: bool) -> None:
    stage = ExplainStage(ExplainStageConfig(model=model, keep_pixels=keep))
    stage.setup()
    before = [make_record(0, ["dog"]), make_record(1, [])]
    after = stage.process(before)
    stage.teardown()
    assert [each.pixels for each in after] == [each.pixels if keep else None for each in before]
    assert [len(each.heat_maps) for each in after] == [1, 0]


def test_maps_are_taken_against_the_others_of_their_image(model: ModelConfig) -> None:
    maps = []
    for strength in (0.0, 0.5):
        stage = ExplainStage(ExplainStageConfig(model=model, explainer=GradEclipConfig(contrast=strength)))
        stage.setup()
        maps.append([each.heat_maps for each in stage.process([make_record(0, ["dog", "red car"]), make_record(1)])])
        stage.teardown()
    (two, one), (two_contrasted, one_contrasted) = maps
    assert [each.values.tobytes() for each in contrasted(two, 0.5)] == [
        each.values.tobytes() for each in two_contrasted
    ]
    assert two_contrasted[0].values.sum() < two[0].values.sum()
    assert one_contrasted[0].values.tobytes() == one[0].values.tobytes()


def test_untouched_records_stay_the_same_objects(stage: ExplainStage) -> None:
    failed = replace(make_record(1), error=RowError(reason="bad_image", detail="here"))
    mute = make_record(2, [])
    blind = replace(make_record(3), pixels=None)
    answers = stage.process([failed, mute, blind])
    assert [a is b for a, b in zip(answers, [failed, mute, blind], strict=True)] == [True] * 3
    assert stage.process([]) == []


def test_the_same_batch_twice(stage: ExplainStage) -> None:
    records = make_records()
    assert as_bytes(stage.process(records)) == as_bytes(stage.process(records))


def test_the_batch_size_of_the_device_holds_if_none_is_given(model: ModelConfig) -> None:
    stage = ExplainStage(ExplainStageConfig(model=model.model_copy(update={"batch_size": None})))
    stage.setup()
    assert stage.batch_rows() == stage.batch_rows("cpu") == BATCH_SIZES["cpu"]
    assert len(stage.process(make_records())) == 15
    stage.teardown()


def test_a_stage_is_picklable_and_cheap_before_setup() -> None:
    config = ExplainStageConfig(model=ModelConfig(config=Path("none.json"), weights=Path("none.pt")))
    stage = pickle.loads(pickle.dumps(ExplainStage(config)))
    assert stage.config == config


def test_setup_says_what_is_wrong(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = model.model_copy(update={"weights": Path("none.safetensors")})
    with pytest.raises(WeightsError, match=r"none\.safetensors"):
        ExplainStage(ExplainStageConfig(model=gone)).setup()
    with pytest.raises(ConfigError, match="has 4 blocks, not 5"):
        ExplainStage(ExplainStageConfig(model=model, explainer=GradEclipConfig(blocks=5))).setup()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ResourceError, match="sees no GPU"):
        ExplainStage(ExplainStageConfig(model=model.model_copy(update={"device": "cuda"}))).setup()


class SmallMemory:
    """An explainer whose GPU holds `most` images, around a real one; `seen` are the batches it was asked for."""

    def __init__(self, explainer: Any, most: int, error: RuntimeError | None = None) -> None:
        self.explainer, self.most = explainer, most
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
        self.seen: list[int] = []

    def learn(self, phrases: Sequence[Sequence[str]]) -> None:
        """It knows no texts."""

    def started(self, pixels: Any, phrases: Sequence[Sequence[str]]) -> Any:
        self.seen.append(len(pixels))
        if len(pixels) > self.most:
            raise self.error
        return self.explainer.started(pixels, phrases)


def test_full_gpu_memory_halves_the_batch_and_no_answer_is_lost(
    model: ModelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    records = make_records()
    stage = ExplainStage(ExplainStageConfig(model=model.model_copy(update={"batch_size": 16})))
    stage.setup()
    memory = stage._explainer = SmallMemory(stage._explainer, most=5)
    first = stage.process(records)
    tried = [size for size in memory.seen if size > 5]
    assert tried == [16, 8], "it does not try again what did not fit"
    assert set(memory.seen) - {16, 8} == {4}
    again = stage.process(records)
    assert memory.seen.count(16) == 1
    stage.teardown()
    other = ExplainStage(ExplainStageConfig(model=model))
    other.setup()
    assert as_bytes(first) == as_bytes(again) == as_bytes(other.process(records))
    other.teardown()
    assert [record.message for record in caplog.records] == [
        "GPU memory is full: going on with batches of 8 images",
        "GPU memory is full: going on with batches of 4 images",
    ]


def test_an_allocation_that_cublas_could_not_make_is_full_memory_and_other_faults_are_not(model: ModelConfig) -> None:
    stage = ExplainStage(ExplainStageConfig(model=model))
    stage.setup()
    explainer = stage._explainer
    cublas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    stage._explainer = SmallMemory(explainer, 2, cublas)
    assert [len(record.heat_maps) for record in stage.process([make_record(n) for n in range(3)])] == [1, 1, 1]
    stage._explainer = SmallMemory(explainer, 0, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        stage.process([make_record(0)])
    stage.teardown()


def test_a_gpu_too_small_for_one_image_says_what_to_do(model: ModelConfig) -> None:
    stage = ExplainStage(ExplainStageConfig(model=model))
    stage.setup()
    stage._explainer = SmallMemory(stage._explainer, most=0)
    with pytest.raises(ResourceError, match=r"does not hold one image with 2 phrases: lower phrases\.max_phrases"):
        stage.process([make_record(0, ("dog", "cat"))])
    stage.teardown()
