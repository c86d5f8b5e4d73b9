"""The device of a model: its choice, its fast precisions, its errors of full memory, and copies to it.

A copy between ordinary memory and a GPU makes the host wait for all earlier work of the GPU. So
on CUDA the host's end of every copy is in pinned memory, which torch reuses only after the copy
has ended. All work goes to the device's current stream, which computes it in order. On a CPU
nothing is copied.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phrasebox.stages.contract.errors import DeviceFault, ResourceError, one_line
from phrasebox.stages.contract.values import Rgb
from phrasebox.stages.model.config import AUTO, Precision, PrecisionChoice

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

DTYPES: Final[dict[str, torch.dtype]] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

_INSTRUCTIONS: Final = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""The instructions, as `torch.cpu.get_capabilities` names them on x86 and ARM, that multiply
matrices of a type.
Without them torch converts number by number: a product of two 512 x 512 matrices takes 142 ms
in bf16 against 3.4 ms in fp32 on an AMD EPYC with AVX2 only."""

_NO_ROOM: Final = "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_NOT_INITIALIZED"
_MEMORY_ERRORS: Final = ("CUDA error: out of memory", *_NO_ROOM)
_FAULTS: Final = ("CUDA error:", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")  # as a convolution says it

_log = logging.getLogger(__name__)


def pick_device(choice: str) -> torch.device:
    """Turn `auto`, `cpu` or `cuda` into a device; `auto` is the GPU where there is one.

    Raise ResourceError, with the reason, if `cuda` is chosen and torch sees no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if choice == "cuda" and not has_gpu:
        raise ResourceError(_explain_missing_gpu(), key="model.device")
    return torch.device("cuda" if has_gpu and choice != "cpu" else "cpu")


def _explain_missing_gpu() -> str:
    reason = "nothing"
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        reason = one_line(error)
    return (
        f"this worker sees no GPU. torch {torch.__version__} says: {reason}. Install a torch and a driver for the same "
        "CUDA, or set model.device=cpu"
    )


def device_name(device: torch.device) -> str:
    """Name a device for people: `cuda:0 NVIDIA H100 80GB HBM3`, or `cpu, 2 threads`."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu, {threads} thread{'' if threads == 1 else 's'}"
    index = torch.cuda.current_device() if device.index is None else device.index
    return f"cuda:{index} {torch.cuda.get_device_name(index)}"


def peak_memory_bytes(device: str) -> int:
    """Return the peak memory of a device that `device_name` names: torch's on a GPU, the process's on a CPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def is_fast(precision: torch.dtype, device: torch.device) -> bool:
    """Return whether a device has instructions for products of matrices of this type.

    GPUs have them for fp32 and fp16, those from Ampere on for bf16, and every CPU for fp32.
    Where torch is too old for `get_capabilities`, a CPU counts as slow in 16 bits.
    """
    if precision == torch.float32:
        return True
    if device.type == "cuda":
        return precision != torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in _INSTRUCTIONS[precision])


def choose_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """Return the precision that a model computes in; `auto` is bf16 where the device is fast in it, and else fp32."""
    if choice != AUTO:
        return choice
    return "bf16" if is_fast(torch.bfloat16, device) else "fp32"


def warn_of_slow_precision(precision: str, device: torch.device) -> None:
    """Log a warning if the configured precision is slow on this device; it is obeyed all the same."""
    if not is_fast(DTYPES[precision], device):
        _log.warning(
            "model.precision is %s, for which this CPU or GPU has no instructions: it is far "
            "slower than fp32, a CPU some 40 times. Set model.precision=fp32, or use a newer GPU",
            precision,
        )


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a GPU's memory is full; libraries below torch then raise a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_ERRORS)
    )


@contextlib.contextmanager
def float32_grads() -> Iterator[None]:
    """Compute in float32 and with gradients within the block, whatever the caller has switched on around it."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def is_broken(error: Exception) -> bool:
    """Return whether a GPU reports a fault other than full memory: its process can compute no more."""
    return (
        isinstance(error, RuntimeError) and str(error).startswith(_FAULTS) and not is_out_of_memory(error)
    )


@contextlib.contextmanager
def moving_to_device(name: str) -> Iterator[None]:
    """Move a model to a device within the block. Raise ResourceError, with the GPU's reason, if the GPU fails."""
    try:
        yield
    except RuntimeError as error:
        if not (is_out_of_memory(error) or is_broken(error)):
            raise
        raise ResourceError(
            f"the GPU does not take the model {name}: {one_line(error)}. Either other processes use the GPU "
            "(nvidia-smi lists them), or its memory is too small: lower engine.explain_workers, or raise "
            "engine.gpus_per_worker"
        ) from error


def retry_on_oom(
    items: Sequence[int],
    compute: Callable[[Sequence[int]], Iterator[ResultT]],
    shrink: Callable[[int, str], None],
) -> Iterator[tuple[int, ResultT]]:
    """Yield each item with its result, in order. Where a GPU's memory is full, shrink batches and go on from there.

    Raise DeviceFault where the GPU reports another fault.

    Args:
        items: Numbers of the items.
        compute: Items -> an iterator of their results.
        shrink: Makes the batches of `compute` smaller, or raises ResourceError where they
            cannot be. It gets the first item without a result, and torch's message.
    """
    remaining = list(items)
    while remaining:
        try:
            for result in compute(tuple(remaining)):
                yield remaining.pop(0), result
        except RuntimeError as error:
            if is_broken(error):
                raise DeviceFault(f"the GPU reports a fault: {one_line(error)}") from error
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        else:
            return
        # Outside the handler: the error holds the frames, and they hold the tensors. A pending
        # batch may fill the memory, and a failure while one batch is waited for may be the
        # fault of the next.
        torch.cuda.empty_cache()
        shrink(remaining[0], reason)


class Batches:
    """The size of batches: where a GPU's memory does not hold one, all that follow are half as large.

    Args:
        size: Items of a batch.
        title: What computes them, for the log.
        advice: What to do where memory does not hold one item alone.
    """

    def __init__(self, size: int, title: str, advice: str) -> None:
        self.size = size
        self._title = title
        self._advice = advice

    def compute(
        self, items: Sequence[ItemT], compute: Callable[[Sequence[ItemT]], Iterable[ResultT]]
    ) -> Iterator[ResultT]:
        """Yield the results of items, which `compute` makes of a batch. Raise as `retry_on_oom`."""

        def batches(numbers: Sequence[int]) -> Iterator[ResultT]:
            for start in range(0, len(numbers), size := self.size):
                yield from compute([items[number] for number in numbers[start : start + size]])

        return (result for _, result in retry_on_oom(range(len(items)), batches, self.shrink))

    def shrink(self, _: int, reason: str) -> None:
        """Halve the batches, as `retry_on_oom` wants it. Raise ResourceError if one item is too much."""
        if self.size == 1:
            raise ResourceError(f"the GPU's memory does not hold one image: use {self._advice} ({reason})")
        self.size //= 2
        _log.warning(
            "GPU memory is full: going on with %d images at a time in the %s", self.size, self._title
        )


@contextlib.contextmanager
def allow_tf32(device: torch.device, precision: torch.dtype) -> Iterator[None]:
    """Let a GPU compute fp32 products in TF32 within the block, where the image trunk has a precision of 16 bits.

    TF32 rounds the factors to 10 bits of mantissa, bf16 to 7; weights that were rounded to bf16
    stay as they are.
    """
    if device.type != "cuda" or precision == torch.float32:
        yield
        return
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to the device; return itself where that is the host."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def pixels_on(images: Sequence[Rgb], device: torch.device) -> Tensor:
    """Images of one size, uint8 (height, width, 3) each, at least one -> uint8 (B, height, width, 3) on the device."""
    pixels = torch.empty(
        (len(images), *images[0].shape), dtype=torch.uint8, pin_memory=device.type == "cuda"
    )
    np.stack(images, out=pixels.numpy())
    return pixels.to(device, non_blocking=True)


class PendingTransfer:
    """A transfer of one device's tensors to the host. The caller may release them, and must not change them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._copies = [_start_copy(tensor.detach()) for tensor in tensors]
        self._arrival: torch.cuda.Event | None = None
        if tensors and tensors[0].device.type == "cuda":
            # Blocking: the host sleeps instead of polling, and leaves its core to other processes.
            self._arrival = torch.cuda.Event(blocking=True)
            self._arrival.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[NDArray[Any]]:
        """Wait until the device has computed and copied these tensors, and for no later work.

        Raise RuntimeError if the device reports a fault of earlier work.
        """
        if self._arrival is not None:
            self._arrival.synchronize()
            self._arrival = None
        return [copy.numpy() for copy in self._copies]


def _start_copy(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
