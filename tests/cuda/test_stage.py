"""The stage that holds the model, on the simulated device: the CPU's numbers, one wait a batch, and a full memory."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from phrasebox.stages.contract.errors import ResourceError
from phrasebox.stages.contract.records import Record
from phrasebox.stages.explain.grad_eclip import GradEclipConfig
from phrasebox.stages.explain.stage import ExplainStage, ExplainStageConfig
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.scores.presence import ImageStatistics, Presence
from tests.build.datasets import Json
from tests.cuda.both import assert_same_maps, both, plain, records
from tests.cuda.simulated import PRODUCTS, SimulatedCuda
from tests.messages import expect_error
from tests.stages.model.saved import load_model

EVERYTHING = {"affinity": "propagation", "scales": (1.0, 0.5), "contrast": 0.2}


def stage_of(model: ClipModel, **settings: Any) -> ExplainStage:
    """A stage of four images a batch that also judges presence."""
    statistics = ImageStatistics.of(
        np.random.default_rng(0).normal(size=(9, model.embed_dim)).astype(np.float32)
    )
    ones = {"similarity": 1.0, "local": 1.0}
    presence = Presence(images=statistics, bias=0.0, weight=ones, mean=ones, scale=ones)
    config = ExplainStageConfig(model=ModelConfig(batch_size=4), explainer=GradEclipConfig(**settings))
    stage = ExplainStage(config, model, presence)
    stage.setup()
    return stage


def assert_same(records: list[Record], wanted: list[Record], precision: str = "fp32") -> None:
    for mine, theirs in zip(records, wanted, strict=True):
        assert plain(mine) == plain(theirs)
        assert_same_maps(mine.heat_maps, theirs.heat_maps, precision)


@pytest.mark.parametrize(
    ("tower", "precision", "settings"),
    [
        ("class token", "fp32", EVERYTHING),
        ("class token", "bf16", EVERYTHING),
        ("class token", "fp32", {"similarity": "projected", "heads": "single"}),
        ("ResNet", "fp32", {}),
        ("SigLIP", "fp32", {}),
        pytest.param("class token", "fp16", EVERYTHING, marks=pytest.mark.slow),
    ],
)
def test_the_whole_stage_makes_what_a_cpu_makes_with_two_waits_a_batch(
    tower: str, precision: str, settings: Json, cuda: SimulatedCuda
) -> None:
    models = both(tower, precision)
    on_cpu, on_gpu = (stage_of(model, **settings) for model in models)
    cuda.waits.clear()
    given = records(11, 4 * models[0].input.patch_px)
    records_on_gpu = on_gpu.process(given)
    assert cuda.waits == {"event": 6}, "the host waits for answers alone: cosines and maps of each batch"
    assert_same(records_on_gpu, on_cpu.process(given), precision)
    assert on_gpu.take_forwards().device == "cuda:0 simulated"
    for stage in (on_cpu, on_gpu):
        stage.signals = {}
        stage.setup()
        stage.process(given[1:3])
    for key, mine in (on_cpu.signals or {}).items():
        theirs = (on_gpu.signals or {})[key]
        assert mine.phrases.local == pytest.approx(theirs.phrases.local, abs=1e-4)


def test_heat_maps_do_not_keep_the_pinned_memory_they_came_in(cuda: SimulatedCuda) -> None:
    _, on_gpu = (stage_of(model) for model in both())
    maps = [each for record in on_gpu.process(records(5)) for each in record.heat_maps]
    assert maps
    assert not any(cuda.pins(each.values) for each in maps)


def test_a_batch_that_the_memory_does_not_hold_is_halved_and_the_answers_stay(
    cuda: SimulatedCuda, caplog: pytest.LogCaptureFixture
) -> None:
    on_cpu, on_gpu = (stage_of(model, affinity="none") for model in both())
    given = records(9)
    on_gpu.process(given)  # which knows the texts then
    cuda.largest_bytes = 0
    on_gpu.process(given)
    of_four_images = cuda.largest_bytes
    cuda.most_bytes = of_four_images / 2
    with caplog.at_level(logging.WARNING):
        records_on_gpu = on_gpu.process(given)
    assert "GPU memory is full: going on with batches of 2 images" in caplog.text
    assert on_gpu.forward_batch_size() == 2
    assert_same(records_on_gpu, on_cpu.process(given))
    cuda.most_bytes = of_four_images / 5
    with expect_error(ResourceError):
        on_gpu.process(given)


@pytest.mark.parametrize("is_full", [True, False], ids=["full", "busy"])
def test_a_gpu_that_does_not_take_the_model_is_said(is_full: bool, cuda: SimulatedCuda) -> None:
    if is_full:
        cuda.most_bytes = 100
    else:
        cuda.broken = torch.AcceleratorError(
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable"
        )
    with expect_error(ResourceError):
        load_model(ModelConfig(name="demo"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bundled_model_computes_in_16_bits_and_beside_them_the_class_path_alone_in_tf32(
    precision: Any, cuda: SimulatedCuda
) -> None:
    config = ModelConfig(name="demo", precision=precision, batch_size=4)
    on_cpu, on_gpu = (
        load_model(config.model_copy(update={"device": device})) for device in ("cpu", "cuda")
    )
    assert (on_gpu.tower.dtype == torch.float32) == (precision == "fp32")
    given = records(4, 4 * on_cpu.tower.placement.stride_px)
    expected = stage_of(on_cpu).process(given)
    stage = stage_of(on_gpu)
    cuda.operations.clear()
    assert_same(stage.process(given), expected, precision)
    rounded = cuda.operations["products in TF32"]
    assert (rounded > 0) == (precision == "bf16")
    assert rounded < sum(cuda.operations[str(product)] for product in PRODUCTS)
    assert torch.get_float32_matmul_precision() == "highest"
