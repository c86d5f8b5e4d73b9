"""Copies between the host and the device that a model computes on, for which the host does not wait.

A copy to or from ordinary memory holds the host up until the device has done all that it was given before. So on CUDA
the host's end of every copy is in pinned memory. torch keeps pinned memory for the next copies, and gives it to no one
while a copy uses it. All work is put on the device's current stream, where it is done in order.

On a CPU nothing is copied: what is asked for is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; itself where that is the host."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def pixels_on(images: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """Images of one size, uint8 (height, width, 3) each -> uint8 (B, height, width, 3) on the device.

    Raises:
        ValueError: The sizes differ, or there is no image.
    """
    if len(images) == 0:
        raise ValueError("expected one image or more")
    pixels = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.stack(images, out=pixels.numpy())
    return pixels.to(device, non_blocking=True)


class OnTheWay:
    """Tensors of one device on their way to the host.

    Args:
        tensors: They are not changed afterwards, but may be let go.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._copies = [_started(tensor) for tensor in tensors]
        self._arrived: torch.cuda.Event | None = None
        if tensors and tensors[0].device.type == "cuda":
            # Blocking: the host sleeps instead of asking again and again, and leaves its core to others.
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[NDArray[Any]]:
        """Wait until the device has made and copied these tensors, and for nothing that it was given later.

        Raises:
            RuntimeError: The device reports a fault of something that was started earlier.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        return [copy.numpy() for copy in self._copies]


def _started(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.device.type != "cuda":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
