"""A CUDA device that is not there: tensors say `cuda:0`, hold their numbers in CPU tensors, and keep CUDA's rules.

    with simulated_cuda() as cuda:
        model.to("cuda")

Within the block, and in its thread only, torch has such a device. What a CUDA device would reject raises: operands on
different devices, NumPy's look into the device's memory, an allocation that is larger than the memory. What it would
do wrong without a word is seen afterwards:

- an answer that is read before its event was waited for: until then its pinned buffer is filled with NaN or ones;
- a pinned buffer that the host changes while a copy of it is under way: `faults`.

`waits` counts what the host waits for, `operations` what the device is told. Kernels are the CPU's, so numbers are
those of the CPU up to rounding; speed, bits and the missing kernels of a real GPU are not simulated.

How it works: to torch's C++ side a `DeviceTensor` is a CPU tensor, so no CUDA is needed there, not even by autograd.
Two modes see every call. The mode of functions answers those that name a device (`to`, `cpu`, `empty(device=...)`), and
the mode of operations runs each kernel on the numbers within, and what it makes belongs to the device, too.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from tests.build.datasets import Json

aten = torch.ops.aten

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")

INDEXING = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)

PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default)
"""Products of matrices, which may be in TF32; their rounding is not simulated."""

WAITED_FOR = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
)
"""Operations whose answers, or their shapes, the host has to know before it goes on."""


class DeviceTensor(Tensor):
    """A tensor of the device; `numbers` is its memory, which only the device's operations may see."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, requires_grad: bool = False) -> DeviceTensor:
        assert type(numbers) is Tensor, "a tensor of the host"
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            layout=numbers.layout,
            device=CPU,
            requires_grad=requires_grad,
        )
        made.numbers = numbers
        return made

    # What `Module.to` asks a tensor that has another one within.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> DeviceTensor:
        return DeviceTensor(parts["numbers"])

    __torch_function__ = torch._C._disabled_torch_function_impl  # `Functions` sees the calls

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __reduce_ex__(self, protocol: Any) -> Any:  # a file that is read with map_location="cpu"
        return self.numbers.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        raise RuntimeError(f"{function}: a tensor of the simulated device outlived it")


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of a call, which lists, tuples and dictionaries hold."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple, dict)):
            yield from tensors_in(value)


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return arguments or answers of a call with their tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: each_tensor(part, change) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [each_tensor(part, change) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value


def numbers_of(given: Tensor) -> Tensor:
    return given.numbers if isinstance(given, DeviceTensor) else given


class Event:
    """Takes the place of `torch.cuda.Event`: what was put on the stream before it is done when it is waited for."""

    device: SimulatedCuda

    def __init__(self, *, blocking: bool = False) -> None:
        self._wait = "event" if blocking else "event, with a busy core"
        self._before: list[Callable[[], object]] = []

    def record(self, _: Any = None) -> None:
        self._before, self.device.under_way = self.device.under_way, []

    def synchronize(self) -> None:
        self.device.waits[self._wait] += 1
        while self._before:
            self._before.pop(0)()


class SimulatedCuda:
    """The device.

    Attributes:
        most_bytes: The largest tensor that its memory holds; a larger one raises `torch.OutOfMemoryError`.
        largest_bytes: The largest tensor so far.
        broken: An error that every operation raises from now on, as a device does after a fault; None for none.
        operations: Name of an operation -> how often the device was told it.
        waits: What the host waited for -> how often.
        faults: What the host did to buffers that were still in use.
    """

    def __init__(self) -> None:
        self.most_bytes: float = float("inf")
        self.largest_bytes = 0
        self.broken: Exception | None = None
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.faults: list[str] = []
        self.under_way: list[Callable[[], object]] = []  # copies that no event was recorded behind
        self._pinned: dict[
            int, Tensor
        ] = {}  # address -> buffer; kept, so that no address is given out twice

    def synchronize(self, *_: Any) -> None:
        """Wait for all that is under way and has no event."""
        while self.under_way:
            self.under_way.pop(0)()

    def pinned(self, made: Tensor) -> Tensor:
        """Return memory of the host as page-locked memory, from and to which copies do not wait."""
        self._pinned[made.untyped_storage().data_ptr()] = made
        return made

    def is_pinned(self, given: Tensor) -> bool:
        return not isinstance(given, DeviceTensor) and given.untyped_storage().data_ptr() in self._pinned

    def pins(self, array: NDArray[Any]) -> bool:
        """Return whether an array lies in page-locked memory."""
        return any(
            np.shares_memory(array, each.view(torch.uint8).numpy()) for each in self._pinned.values()
        )

    def moved(self, given: Tensor, device: torch.device, *, waits: bool) -> Tensor:
        """Return a copy of a tensor on the other device."""
        if self.broken is not None:
            raise self.broken
        if device.type == "cuda":
            self.operations["host to device"] += 1
            if waits or not self.is_pinned(given):
                self.waits["host to device"] += 1
            else:
                as_it_was = given.detach().clone()
                self.under_way.append(partial(self._check_unchanged, as_it_was, given))
            return _Copy.apply(given, self)  # type: ignore[no-any-return]
        self.operations["device to host"] += 1
        self.waits["device to host"] += 1
        return _Copy.apply(given, self)  # type: ignore[no-any-return]

    def _check_unchanged(self, was: Tensor, given: Tensor) -> None:
        if not torch.equal(was, given):
            self.faults.append(
                f"a pinned buffer {tuple(given.shape)} changed while it was copied to the device"
            )

    def run(self, function: Any, arguments: Any, options: Json, *, makes: bool) -> Any:
        """Run an operation. makes: Whether what it makes of nothing belongs to the device."""
        given = [*tensors_in((arguments, options))]
        on_device = any(isinstance(each, DeviceTensor) for each in given)
        named = options.get("device")
        if named is not None and torch.device(named).type == "cuda":
            makes, options = True, {**options, "device": CPU}
        if not on_device and (given or not makes):
            return function(*arguments, **options)
        if self.broken is not None:
            raise self.broken
        if function is aten.copy_.default:
            return self._copy(*arguments, **options)
        self._check_devices(function, given)
        self._count(function, arguments)
        arguments_within, options_within = each_tensor((arguments, options), numbers_of)
        if function in PRODUCTS and torch.get_float32_matmul_precision() != "highest":
            self.operations["products in TF32"] += 1
        answer = each_tensor(
            function(*arguments_within, **options_within), lambda made: self._made(made, given)
        )
        return return_and_correct_aliasing(function, arguments, options, answer) if on_device else answer

    def _made(self, numbers: Tensor, given: Sequence[Tensor] = ()) -> Tensor:
        """Return what an operation made of some tensors as the device's."""
        if numbers.is_meta:
            return numbers
        memory = numbers.untyped_storage()
        if (size := memory.nbytes()) > min(self.most_bytes, self.largest_bytes):
            if any(numbers_of(each).untyped_storage().data_ptr() == memory.data_ptr() for each in given):
                return DeviceTensor(numbers)  # a view
            if size > self.most_bytes:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
            self.largest_bytes = size
        return DeviceTensor(numbers)

    def _count(self, function: Any, arguments: Any) -> None:
        self.operations[str(function)] += 1
        if function in WAITED_FOR:
            self.waits[str(function)] += 1
        elif function in INDEXING and any(
            each is not None and each.dtype == torch.bool for each in arguments[1]
        ):
            self.waits["boolean mask"] += 1

    def _check_devices(self, function: Any, given: list[Tensor]) -> None:
        """Raise RuntimeError, as CUDA does, where tensors of the host stand beside the device's; numbers may."""
        if not any(not isinstance(each, DeviceTensor) and each.dim() for each in given):
            return
        if function not in INDEXING or not isinstance(given[0], DeviceTensor):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({function}: {[each.device.type for each in given]})"
            )
        self.waits["index of the host"] += 1

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        numbers = numbers_of(source)
        self.operations["copy_"] += 1
        if isinstance(target, DeviceTensor):
            if not isinstance(source, DeviceTensor) and source.dim():
                self.waits["host to device"] += 1
            target.numbers.copy_(numbers)
        elif non_blocking and self.is_pinned(target):
            as_it_is = numbers.clone()  # the stream copies it before what it is told later
            target.fill_(float("nan") if target.is_floating_point() else 1)
            self.under_way.append(partial(target.copy_, as_it_is))
        else:
            self.waits["device to host"] += 1
            target.copy_(numbers)
        return target


class _Copy(torch.autograd.Function):
    """A copy between the devices, through which gradients go back."""

    @staticmethod
    def forward(context: Any, given: Tensor, device: SimulatedCuda) -> Tensor:  # type: ignore[override]
        context.device = device
        if isinstance(given, DeviceTensor):
            return given.numbers.clone()
        with torch.utils._python_dispatch._disable_current_modes():
            return device._made(given.detach().clone())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return _Copy.apply(gradient, context.device), None


class Functions(TorchFunctionMode):
    """Answers the calls that name a device or ask for one; `Operations` sees what the others do."""

    def __init__(self, device: SimulatedCuda, operations: Operations) -> None:
        super().__init__()
        self.device = device
        self.operations = operations
        methods = {
            name: getattr(self, f"_{name}")
            for name in ("to", "cpu", "cuda", "pin_memory", "is_pinned", "numpy")
        }
        self.answers = {getattr(Tensor, name): answer for name, answer in methods.items()}
        self.answers |= {
            Tensor.__array__: self._numpy,
            Tensor.tolist: self._tolist,
            torch.tensor: self._tensor,
        }
        self.answers |= {torch.as_tensor: self._tensor}

    def __torch_function__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        options = dict(options or {})
        if function in self.answers:
            return self.answers[function](*arguments, **options)
        named = options.get("device")
        makes = named is not None and torch.device(named).type == "cuda"
        if makes:
            options["device"] = CPU
        if options.pop("pin_memory", False):
            return self.device.pinned(function(*arguments, **options))
        makes = makes or any(isinstance(each, DeviceTensor) for each in tensors_in((arguments, options)))
        with self.operations.making(makes):
            return function(*arguments, **options)

    def _to(self, given: Tensor, *arguments: Any, **options: Any) -> Tensor:
        copy = options.pop("copy", False)
        other = arguments[0] if arguments else options.get("other")
        if isinstance(other, Tensor):
            device = other.device
            dtype = other.dtype
            non_blocking = options.get("non_blocking", False)
            layout = None
        else:
            device, dtype, non_blocking, layout = torch._C._nn._parse_to(*arguments, **options)
        if device is not None and device.type == "meta":
            return given.to("meta", dtype)
        if device is not None and device.type != given.device.type:
            # As torch does it: converted where it comes from, and then copied.
            given = given if dtype is None else given.to(dtype)
            return self.device.moved(given, device, waits=not non_blocking)
        if dtype is None and layout is None and not copy:
            return given
        return given.to(
            dtype or given.dtype, copy=copy, **({} if layout is None else {"memory_format": layout})
        )

    def _cpu(self, given: Tensor, **_: Any) -> Tensor:
        return self._to(given, CPU)

    def _cuda(self, given: Tensor, *_: Any, non_blocking: bool = False, **__: Any) -> Tensor:
        return self._to(given, CUDA, non_blocking=non_blocking)

    def _pin_memory(self, given: Tensor, *_: Any) -> Tensor:
        if isinstance(given, DeviceTensor):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        return self.device.pinned(given.clone())

    def _is_pinned(self, given: Tensor, *_: Any) -> bool:
        return self.device.is_pinned(given)

    def _numpy(self, given: Tensor, *arguments: Any, **options: Any) -> Any:
        if isinstance(given, DeviceTensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        return given.numpy(*arguments, **options) if not arguments else given.__array__(*arguments)

    def _tolist(self, given: Tensor) -> Any:
        return self._to(given, CPU).tolist()

    def _tensor(self, *arguments: Any, device: Any = None, **options: Any) -> Tensor:
        made = torch.tensor(*arguments, **options)
        return made if device is None else self._to(made, torch.device(device))


class Operations(TorchDispatchMode):
    """Gives the device every operation on its tensors, and those that make tensors for it."""

    def __init__(self, device: SimulatedCuda) -> None:
        super().__init__()
        self.device = device
        self.makes = False

    @contextlib.contextmanager
    def making(self, makes: bool) -> Iterator[None]:
        """Within the block, what operations make of nothing is the device's, or is not."""
        before, self.makes = self.makes, makes
        try:
            yield
        finally:
            self.makes = before

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        return self.device.run(function, arguments, dict(options or {}), makes=self.makes)


@contextlib.contextmanager
def simulated_cuda(device: SimulatedCuda | None = None) -> Iterator[SimulatedCuda]:
    """Give torch a CUDA device within the block, in this thread."""
    device = device or SimulatedCuda()
    places: Json = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "simulated",
        "is_bf16_supported": lambda **_: True,
        "empty_cache": lambda: None,
        "current_stream": lambda *_: None,
        "synchronize": device.synchronize,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
        "max_memory_allocated": lambda *_: 0,
        "Event": type("Event", (Event,), {"device": device}),
    }
    saved = {name: getattr(torch.cuda, name) for name in places}
    for name, value in places.items():
        setattr(torch.cuda, name, value)
    operations = Operations(device)
    try:
        with operations, Functions(device, operations):
            yield device
    finally:
        for name, value in saved.items():
            setattr(torch.cuda, name, value)
