"""The interface of image towers that explainers use, whatever the tower is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from phrasebox.stages.contract.values import Sides
from phrasebox.stages.model.config import TowerKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The places of a tower's tokens in its image. Each stands for a cell of the grid that covers the whole image.

    Attributes:
        stride_px: Side of a cell, which is the distance of neighbouring tokens. Sides of images
            are multiples of it.
        shift_px: How far right of and below the centre of its cell a token looks: the centre of
            its receptive field less the centre of its cell. 0 for patches. A convolution of
            stride s with symmetric padding and an odd kernel moves the tokens by -(s - 1) / 2,
            TensorFlow's SAME padding by +(s - 1) / 2 for even sides.
    """

    stride_px: int
    shift_px: float = 0.0

    @property
    def shift_cells(self) -> float:
        """`shift_px` as a share of a cell."""
        return self.shift_px / self.stride_px

    def grid_hw(self, height_px: int, width_px: int) -> Sides:
        """Return an image's rows and columns of tokens. Raise ValueError if a side is not a multiple of the stride."""
        if height_px % self.stride_px or width_px % self.stride_px:
            raise ValueError(
                f"expected sides that are multiples of the {self.stride_px} px patch, got {width_px}x{height_px}"
            )
        return height_px // self.stride_px, width_px // self.stride_px


class Tower(ABC):
    """The whole image side of a CLIP model. `mean` and `std` are those of the RGB channels in 0-1, (3,) each."""

    __slots__ = ()

    mean: Tensor
    std: Tensor
    kind: TowerKind

    @property
    @abstractmethod
    def placement(self) -> Placement:
        """The places of its tokens."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Precision that the trunk computes in."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mean.device

    @abstractmethod
    def embed(self, rgb: Tensor) -> Tensor:
        """uint8 pixels (B, height, width, 3) -> tokens (B, T, D), as the explained part of the tower takes them.

        Raise ValueError if a side is not a multiple of the stride.
        """

    @abstractmethod
    def encode(self, rgb: Tensor) -> Tensor:
        """uint8 pixels (B, height, width, 3) -> embeddings (B, E), not normalised."""

    def grid_of(self, rgb: Tensor) -> Sides:
        """Return the rows and columns of tokens of images (B, height, width, 3); raise ValueError as `embed`."""
        return self.placement.grid_hw(rgb.shape[1], rgb.shape[2])

    def normalise(self, rgb: Tensor) -> Tensor:
        """uint8 pixels (B, height, width, 3) -> float32 (B, 3, height, width) as the model was trained on.

        Memory holds pixel after pixel: convolutions whose windows overlap take a quarter of the
        time then. Raises ValueError as `embed`.
        """
        self.grid_of(rgb)
        x = rgb.to(self.device).permute(0, 3, 1, 2).to(torch.float32)
        return (
            x.div(255.0).sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        )  # x may be the pixels
