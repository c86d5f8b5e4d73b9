"""Heat maps of a batch as tensors, and the formulas that explainers share.

Maps at several scales are averaged, as class activation maps are for segmentation (Ahn and Kwak, CVPR 2018; not from
the Grad-ECLIP paper): a larger image shows small things on more tokens, a smaller one has the size that the network
learned from.

Shapes: B images, P phrases, N patches, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.contract.geometry import round_to_multiple

FAULTS: Final = ("", "constant", "empty", "non_finite")  # Why a map is all zeros, by number


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """The maps of a batch, as an explainer computes them; all but `constant` and `tokens` are float32.

    Attributes:
        values: Heat (B, P, N), >= 0, not normalised.
        cosines: Cosines of image and text embedding (B, P).
        constant: Bool (B,), True where the method cannot distinguish the patches of an image.
        tokens: Tokens of the patches (B, N, D), for `share_heat`.
        embedding: Embeddings of the images (B, E), in any scale; `PendingMaps.signals` requires them.
        embed_patches: Computes the embedding of each patch alone (B, N, E), in any scale. None where the method does
            not know it.
    """

    values: Tensor
    cosines: Tensor
    constant: Tensor | None = None
    tokens: Tensor | None = None
    embedding: Tensor | None = None
    embed_patches: Callable[[], Tensor] | None = None

    def replace_faults(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps and cosines with zeros where they are not finite, and the numbers of the faults in FAULTS."""
        finite = self.values.isfinite().all(dim=-1) & self.cosines.isfinite()
        maps = torch.where(finite[..., None], self.values, 0.0)
        empty = maps.amax(dim=-1) <= 0
        faults = torch.where(empty, 2, 0)
        if self.constant is not None:
            faults = torch.where(empty & self.constant[:, None], 1, faults)
        return maps, torch.where(self.cosines.isfinite(), self.cosines, 0.0), torch.where(finite, faults, 3)


def concatenate_maps(images: Sequence[Maps]) -> Maps:
    """Return the maps of a batch, given those of its images."""

    def concatenate(parts: Sequence[Tensor | None]) -> Tensor | None:
        tensors = [part for part in parts if part is not None]
        return torch.cat(tensors) if tensors else None

    return Maps(
        values=torch.cat([maps.values for maps in images]),
        cosines=torch.cat([maps.cosines for maps in images]),
        tokens=concatenate([maps.tokens for maps in images]),
        embedding=concatenate([maps.embedding for maps in images]),
    )


def compute_by_step(
    texts: Tensor, step: int, compute: Callable[[Tensor], tuple[Tensor, Tensor]], dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Compute two results for texts (B, P, E), `step` phrases at a time, and join the first along its dimension `dim`.

    A batch is padded to a multiple of `step`, so that products have one shape, whatever number of phrases an image has.
    """
    first, second = zip(*(compute(part) for part in texts.split(step, dim=1)), strict=True)
    return torch.cat(first, dim=dim), torch.cat(second, dim=1)


def cosines_of(embedding: Tensor, texts: Tensor) -> Tensor:
    """Image embeddings (B, E) in any scale and unit text embeddings (B, P, E) -> cosines (B, P)."""
    return torch.einsum("be,bpe->bp", F.normalize(embedding, dim=-1), texts)


def cosine_gradients(embedding: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (B, E), unit texts (B, P, E) -> dc/de = (t - c e/|e|) / |e|, (B, P, E), and the cosines c (B, P)."""
    norm = embedding.norm(dim=-1, keepdim=True)
    unit = embedding / norm
    cosines = torch.einsum("be,bpe->bp", unit, texts)
    return (texts - cosines[..., None] * unit[:, None]) / norm[:, None], cosines


def min_max(s: Tensor, among: Tensor | None = None, equal: float = 0.0) -> Tensor:
    """Min-max normalise rows (B, N), over the places that are True in `among`; `equal` where all of these are equal."""
    lower = s if among is None else s.masked_fill(~among, torch.inf)
    upper = s if among is None else s.masked_fill(~among, -torch.inf)
    low = lower.amin(dim=1, keepdim=True)
    spread = upper.amax(dim=1, keepdim=True) - low
    return torch.where(spread > 0, (s - low) / torch.where(spread > 0, spread, 1.0), equal)


@torch.no_grad()
def local_cosines(maps: Maps, texts: Tensor, step: int) -> Tensor:
    """Return the highest cosine (B, P) of a phrase and one patch alone; the image's where patches are not known.

    The unit text embeddings are (B, P, E); `step` phrases of an image are computed together.
    """
    if maps.embed_patches is None:
        return maps.cosines
    unit = F.normalize(maps.embed_patches().float(), dim=-1).mT
    return torch.cat([(part @ unit).amax(dim=-1) for part in texts.split(step, dim=1)], dim=1)


def at_scale(rgb: Tensor, scale: float, stride_px: int) -> Tensor:
    """Resize images uint8 (B, h, w, 3) to a share of their size, sides rounded to the stride; antialiased, bicubic."""
    height, width = (round_to_multiple(side * scale, stride_px) for side in rgb.shape[1:3])
    if (height, width) == rgb.shape[1:3]:
        return rgb
    planes = F.interpolate(rgb.permute(0, 3, 1, 2).float(), (height, width), mode="bicubic", antialias=True)
    return planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def mean_of(scales: Sequence[Maps], grids_hw: Sequence[tuple[int, int]], shift_cells: float) -> Maps:
    """Return the mean of the maps at several scales, on the first scale's grid.

    Every map counts with its heat as shares of its highest. Cosines are averaged, and embeddings as unit vectors. The
    values lie `shift_cells` right of and below the centres of their cells, see `HeatMap`.
    """
    values = [
        _on_grid(_shares(maps.values).unflatten(-1, grid_hw), grids_hw[0], shift_cells).flatten(-2)
        for maps, grid_hw in zip(scales, grids_hw, strict=True)
    ]
    constant = [maps.constant for maps in scales if maps.constant is not None]
    embeddings = [F.normalize(maps.embedding.float(), dim=-1) for maps in scales if maps.embedding is not None]
    return Maps(
        values=torch.stack(values).mean(dim=0),
        cosines=torch.stack([maps.cosines for maps in scales]).mean(dim=0),
        constant=torch.stack(constant).all(dim=0) if constant else None,
        embedding=torch.stack(embeddings).mean(dim=0) if embeddings else None,
    )


def _shares(values: Tensor) -> Tensor:
    highest = values.amax(dim=-1, keepdim=True)
    return torch.where(highest > 0, values / highest, values)


def _on_grid(maps: Tensor, grid_hw: tuple[int, int], shift_cells: float) -> Tensor:
    """Interpolate maps (..., rows, columns) on another grid, bilinearly between the places of their values."""
    for dim, (cells, target) in enumerate(zip(maps.shape[-2:], grid_hw, strict=True), start=-2):
        if cells == target:
            continue
        centres = torch.arange(target, device=maps.device, dtype=torch.float32) + (0.5 + shift_cells)
        places = (centres * (cells / target) - (0.5 + shift_cells)).clamp(0, cells - 1)
        before = places.floor().long().clamp(max=max(0, cells - 2))
        share = places - before
        share = share[:, None] if dim == -2 else share
        after = (before + 1).clamp(max=cells - 1)
        maps = maps.index_select(dim, before) * (1 - share) + maps.index_select(dim, after) * share
    return maps
