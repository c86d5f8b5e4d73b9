from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from stages.contract.errors import ResourceError
from stages.shared.model.config import ModelConfig
from stages.shared.model.device import (
    device_name,
    fast_precision,
    is_fast,
    is_out_of_memory,
    pick_device,
    warn_of_slow_precision,
)
from stages.shared.model.load import load

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def processor(monkeypatch: pytest.MonkeyPatch, *instructions: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True))


def test_auto_takes_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [pick_device(wanted).type for wanted in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"


@pytest.mark.parametrize(
    ("version", "cuda", "reason", "advice"),
    [
        ("2.13.0+cpu", None, "Torch not compiled with CUDA enabled", "install a torch that is built for CUDA"),
        ("2.13.0", "13.0", "The NVIDIA driver on your system is too old", "give the machine a driver for that CUDA"),
    ],
)
def test_a_gpu_that_is_wanted_and_not_seen_is_an_error_with_torch_s_reason(
    version: str, cuda: str | None, reason: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init() -> None:
        raise AssertionError(reason) if cuda is None else RuntimeError(reason)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ResourceError, match=r"model\.device is cuda, but this worker sees no GPU\.") as raised:
        pick_device("cuda")
    build = f"torch {version}, built {f'for CUDA {cuda}' if cuda else 'without CUDA'}, says: {reason}."
    assert build in str(raised.value)
    assert advice in str(raised.value)
    assert "set model.device=cpu" in str(raised.value)


def test_devices_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert device_name(CPU) == "cpu, 1 thread"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"NVIDIA number {index}")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert [device_name(GPU), device_name(torch.device("cuda", 1))] == [
        "cuda:3 NVIDIA number 3",
        "cuda:1 NVIDIA number 1",
    ]


def test_the_device_of_a_loaded_model_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "stages.shared.model"):
        clip = load(ModelConfig(name="demo", device="cpu", threads=2))
    assert clip.device_name == "cpu, 2 threads"
    assert [record.getMessage() for record in caplog.records] == [
        "demo: the weights are open_clip's",
        "demo computes on cpu, 2 threads in fp32",
    ]


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
    instructions: tuple[str, ...], fast: set[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processor(monkeypatch, *instructions)
    assert fast_precision(CPU) == ("bf16" if "bf16" in fast else "fp32")
    assert is_fast(torch.bfloat16, GPU)
    for name in ("fp32", "bf16", "fp16"):
        caplog.clear()
        warn_of_slow_precision(name, CPU)
        assert bool(caplog.records) == (name not in fast)


def test_a_torch_that_does_not_know_the_processor_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fast_precision(CPU) == "fp32"


def test_a_slow_precision_is_obeyed_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processor(monkeypatch, "avx2")
    clip = load(ModelConfig(name="demo", device="cpu", precision="bf16"))
    assert clip.tower.class_token.dtype == torch.bfloat16
    assert "model.precision is bf16, but this CPU has no instructions for it" in caplog.text
    assert clip.device_name.endswith(", slow in bfloat16")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
    ids=str,
)
def test_errors_of_full_memory_are_known(error: Any, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_loading_a_model_leaves_torchs_float32_as_the_documentation_says_it_is() -> None:
    """Full products of matrices, and TF32 in convolutions (pipeline/README.md)."""
    load(ModelConfig(name="demo", device="cpu"))
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
