"""Heat maps of a batch as tensors, and the formulas that explainers share.

Maps at several scales are averaged, as class activation maps are for segmentation (Ahn and
Kwak, CVPR 2018; not from the Grad-ECLIP paper): a larger image shows small objects on more
tokens, a smaller one has the size that the network learned from.

Heat follows objects: neighbouring tokens that are alike to the network share their heat.

Label propagation as in LPOSS (Stojnić et al., CVPR 2025, arXiv 2503.19777), among the tokens of
the network itself instead of another's:

    W_ij = max(cos(x_i, x_j) - t, 0) exp(-d_ij), W_ii = 0     x less the image's mean, d the distance in cells
    H' = (I - a D^-1/2 W D^-1/2)^-1 H                         D the sums of W's rows, a is `affinity_reach`

x are the tokens before the pool or the mean, or, with a class token, before an early block. One
Cholesky factorisation of an image solves the equations for all of its phrases, exactly; LPOSS
takes at most ten steps of conjugate gradients. LPOSS's graph of nearest neighbours and its
power of the cosine are left out. The mean over all tokens that are alike and the attention of
CLIP-ES were worse or no better (docs/benchmarks/settings.md).

Shapes: B images, P phrases, N patches, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.contract.geometry import round_to_multiple

PHRASES_PER_STEP: Final = 8  # phrases of an image that are computed together

FAULTS: Final = ("", "constant", "empty", "not_finite")  # Why a map is all zeros, by number

ALIKE: Final = 0.3  # t of the formula: tokens whose cosine is not above this share no heat

_TINY: Final = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """The maps of a batch of images, which are computed for phrases later; all tensors but two are float32.

    Attributes:
        heat: Computes the heat (B, P, N), >= 0, not normalised, of unit text embeddings
            (B, P, E). P is a multiple of `PHRASES_PER_STEP`. Rows of zeros fill up images that
            have fewer phrases. It is called without a graph.
        embedding: Embeddings of the images (B, E), in any scale and without a graph.
        constant: Bool (B,), True where the method cannot distinguish the patches of an image.
        tokens: Tokens of the patches (B, N, D) in any precision, for `share_heat`.
        embed_patches: Computes the embedding of each patch alone (B, N, E), in any scale. None
            where the method does not know it.
    """

    heat: Callable[[Tensor], Tensor]
    embedding: Tensor
    constant: Tensor | None = None
    tokens: Tensor | None = None
    embed_patches: Callable[[], Tensor] | None = None


def replace_faults(
    values: Tensor, cosines: Tensor, constant: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """Return maps with zeros where map or cosine is not finite, and the numbers of the faults in FAULTS.

    Args:
        values: Heat (B, P, N).
        cosines: Cosines of image and text embedding (B, P).
        constant: `Maps.constant` at each scale, if the method knows it.
    """
    finite = values.isfinite().all(dim=-1) & cosines.isfinite()
    maps = torch.where(finite[..., None], values, 0.0)
    empty = maps.amax(dim=-1) <= 0
    faults = torch.where(empty, 2, 0)
    if constant:
        faults = torch.where(empty & torch.stack([*constant]).all(dim=0)[:, None], 1, faults)
    return maps, torch.where(finite, faults, 3)


def compute_by_step(texts: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute results (B, P, ...) for texts (B, P, E), `PHRASES_PER_STEP` at a time.

    A batch is padded to a multiple of them, so that products have one shape, whatever number of
    phrases an image has.
    """
    return torch.cat([compute(part) for part in texts.split(PHRASES_PER_STEP, dim=1)], dim=1)


def cosines_of(embedding: Tensor, texts: Tensor) -> Tensor:
    """Image embeddings (B, E) in any scale and unit text embeddings (B, P, E) -> cosines (B, P)."""
    return torch.einsum("be,bpe->bp", F.normalize(embedding, dim=-1), texts)


def gradients_at_embedding(embedding: Tensor, texts: Tensor) -> Tensor:
    """Embeddings (B, E), unit texts (B, P, E) -> the gradients dc/de = (t - c e/|e|) / |e| of the cosines (B, P, E).

    >>> gradients_at_embedding(torch.tensor([[2.0, 0.0]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    tensor([[[0.0000, 0.0000],
             [0.0000, 0.5000]]])
    """
    norm: Tensor = embedding.norm(dim=-1, keepdim=True)
    cosines = cosines_of(embedding, texts)
    gradients: Tensor = (texts - cosines[..., None] * (embedding / norm)[:, None]) / norm[:, None]
    return gradients


def min_max(s: Tensor) -> Tensor:
    """Min-max normalise rows (B, N); 0 where all values of a row are equal.

    >>> min_max(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    tensor([[0.0000, 0.5000, 1.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    low = s.amin(dim=1, keepdim=True)
    spread = s.amax(dim=1, keepdim=True) - low
    return torch.where(spread > 0, (s - low) / torch.where(spread > 0, spread, 1.0), 0.0)


def highest_cosines(patches: Tensor, texts: Tensor) -> Tensor:
    """Embeddings of single patches (B, N, E) in any scale, unit texts (B, P, E) -> highest cosine (B, P)."""
    highest: Tensor = (texts @ F.normalize(patches.float(), dim=-1).mT).amax(dim=-1)
    return highest


def at_scale(rgb: Tensor, scale: float, stride_px: int) -> Tensor:
    """Resize images uint8 (B, h, w, 3) to a share of their size, sides rounded to the stride; antialiased, bicubic."""
    height, width = (round_to_multiple(side * scale, stride_px) for side in rgb.shape[1:3])
    if (height, width) == rgb.shape[1:3]:
        return rgb
    planes = F.interpolate(rgb.permute(0, 3, 1, 2).float(), (height, width), mode="bicubic", antialias=True)
    return planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def mean_of(scales: Sequence[Tensor], grids_hw: Sequence[tuple[int, int]], shift_cells: float) -> Tensor:
    """Return the mean of the heat (B, P, N) at several scales, on the first scale's grid.

    Every map counts with its heat as shares of its highest. The values lie `shift_cells` right
    of and below the centres of their cells, see `HeatMap`.
    """
    values = [
        _on_grid(_shares(heat).unflatten(-1, grid_hw), grids_hw[0], shift_cells).flatten(-2)
        for heat, grid_hw in zip(scales, grids_hw, strict=True)
    ]
    return torch.stack(values).mean(dim=0)


def _shares(values: Tensor) -> Tensor:
    highest = values.amax(dim=-1, keepdim=True)
    return torch.where(highest > 0, values / highest, values)


def _on_grid(maps: Tensor, grid_hw: tuple[int, int], shift_cells: float) -> Tensor:
    """Interpolate maps (B, P, rows, columns) on another grid, bilinearly between the places of their values."""
    if maps.shape[-2:] == grid_hw:
        return maps
    y, x = (
        (torch.arange(target, device=maps.device, dtype=maps.dtype) + (0.5 + shift_cells)) * (2 / target)
        - (1 + 2 * shift_cells / cells)
        for cells, target in zip(maps.shape[-2:], grid_hw, strict=True)
    )
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps, places, padding_mode="border", align_corners=False)


def token_graph(x: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Tokens (B, N, D) -> D^-1/2 W D^-1/2 of the module's formula, (B, N, N); zero where no two are alike."""
    unit = F.normalize(x - x.mean(dim=1, keepdim=True), dim=-1)
    rows, columns = (torch.arange(side, dtype=torch.float32, device=x.device) for side in grid_hw)
    places = torch.cartesian_prod(rows, columns)
    near = torch.exp(-(places[:, None] - places).norm(dim=-1)).fill_diagonal_(0)
    graph = (unit @ unit.mT - ALIKE).relu_().mul_(near)
    scale = graph.sum(dim=-1).clamp(min=_TINY).rsqrt()
    return graph * scale[:, :, None] * scale[:, None]


@torch.no_grad()
def share_heat(values: Tensor, tokens: Tensor, grid_hw: tuple[int, int], reach: float) -> Tensor:
    """Maps (B, P, N), >= 0, and tokens of the patches (B, N, D) on a grid -> maps after sharing, >= 0.

    The matrix that is solved is positive definite, because no eigenvalue of the graph is above 1.
    Maps are not finite where values or tokens are not.

    >>> tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]])
    >>> share_heat(torch.tensor([[[1.0, 0.0, 0.0]]]), tokens, (1, 3), reach=0.5)
    tensor([[[1.3333, 0.6667, 0.0000]]])
    """
    graph = token_graph(tokens.float(), grid_hw)
    system = torch.eye(graph.shape[-1], device=graph.device) - reach * graph
    return torch.cholesky_solve(values.mT, torch.linalg.cholesky_ex(system).L).mT.relu()
