"""Devices: their choice, precisions and errors."""

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from phrasebox.stages.contract.errors import ResourceError
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.device import (
    PendingTransfer,
    choose_precision,
    is_broken,
    is_fast,
    is_out_of_memory,
    pick_device,
    pixels_on,
    to_device,
    warn_of_slow_precision,
)
from tests.messages import expect_error
from tests.stages.model.saved import load_model

CPU = torch.device("cpu")
GPU = torch.device("cuda")


def processor(monkeypatch: pytest.MonkeyPatch, *instructions: str) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True), raising=False
    )


def test_auto_takes_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [pick_device(expected).type for expected in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"


@pytest.mark.parametrize(
    ("version", "error"),
    [
        ("2.13.0+cpu", AssertionError("Torch not compiled with CUDA enabled")),
        ("2.13.0", RuntimeError("The NVIDIA driver on your system is too old")),
    ],
)
def test_a_wanted_gpu_that_is_not_seen_is_an_error_with_its_reason(version, error, monkeypatch) -> None:
    def init() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch, "__version__", version)
    with expect_error(ResourceError, key="model.device"):
        pick_device("cuda")


def test_the_device_of_a_loaded_model_is_logged_and_torch_s_float32_stays_as_documented(caplog) -> None:
    """Full products of matrices, and TF32 in convolutions (pipeline/README.md)."""
    with caplog.at_level(logging.INFO, "phrasebox.stages.model"):
        clip = load_model(ModelConfig(name="demo", device="cpu", threads=2))
    precision = choose_precision("auto", CPU)
    assert clip.device_name == "cpu, 2 threads"
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "demo: the weights are open_clip's",
        f"demo computes on cpu, 2 threads in {precision}",
    ]
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("instructions", "fast"),
    [
        (("avx2", "fma3"), {"fp32"}),
        (("avx512_f", "avx512_bf16"), {"fp32", "bf16"}),
        (("amx_bf16", "amx_fp16"), {"fp32", "bf16", "fp16"}),
        (("neon", "bf16", "fp16_arith"), {"fp32", "bf16", "fp16"}),
    ],
    ids=["avx2", "avx512", "amx", "arm"],
)
def test_the_processor_decides_what_is_fast(
    instructions: tuple[str, ...], fast: set[str], monkeypatch, caplog
) -> None:
    processor(monkeypatch, *instructions)
    assert is_fast(torch.bfloat16, CPU) == ("bf16" in fast)
    assert choose_precision("auto", CPU) == ("bf16" if "bf16" in fast else "fp32")
    assert choose_precision("fp16", CPU) == "fp16", "a named one is obeyed"
    for name in ("fp32", "bf16", "fp16"):
        caplog.clear()
        warn_of_slow_precision(name, CPU)
        assert bool(caplog.records) == (name not in fast)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not is_fast(torch.bfloat16, CPU), "a torch that does not know the processor"


@pytest.mark.parametrize(("generation", "precision"), [(7, "fp32"), (8, "bf16")])
def test_gpus_from_ampere_on_compute_in_bf16(generation: int, precision: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=generation))
    assert choose_precision("auto", GPU) == precision
    assert is_fast(torch.float16, GPU)


def test_a_slow_precision_is_obeyed_with_a_warning(monkeypatch, caplog) -> None:
    processor(monkeypatch, "avx2")
    clip = load_model(ModelConfig(name="demo", device="cpu", precision="bf16"))
    assert clip.tower.dtype == torch.bfloat16
    assert "model.precision is bf16, for which this CPU or GPU has no instructions" in caplog.text


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "full"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "full",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), "full"),
        (RuntimeError("CUDA error: out of memory"), "full"),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), "broken"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "broken"),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
            "the program's",
        ),  # each worker would meet it again
        (ValueError("CUDA error: out of memory"), "the program's"),
    ],
    ids=str,
)
def test_errors_of_full_memory_and_of_a_broken_device_are_known(error: Any, kind: str) -> None:
    assert (is_out_of_memory(error), is_broken(error)) == (kind == "full", kind == "broken")


def test_on_a_cpu_nothing_is_copied() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    assert to_device(values, CPU) is values
    (arrived,) = PendingTransfer([values]).wait()
    assert np.shares_memory(arrived, values.numpy())


def test_pixels_of_one_size_are_stacked() -> None:
    images = [
        np.random.default_rng(number).integers(0, 256, (2, 5, 3), dtype=np.uint8) for number in range(3)
    ]
    stacked = pixels_on(images, CPU)
    assert stacked.dtype == torch.uint8
    np.testing.assert_array_equal(stacked.numpy(), np.stack(images))
