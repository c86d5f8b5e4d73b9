"""Heat follows objects: neighbouring tokens that are alike to the network share their heat.

Label propagation as in LPOSS (Stojnić et al., CVPR 2025, arXiv 2503.19777), among the tokens of
the network itself instead of another's:

    W_ij = max(cos(x_i, x_j) - t, 0) exp(-d_ij), W_ii = 0     x less the image's mean, d the distance in cells
    H' = (I - a D^-1/2 W D^-1/2)^-1 H                         D the sums of W's rows, a is `affinity_reach`

x are the tokens before the pool or the mean, or, with a class token, before an early block. One
Cholesky factorisation of an image solves the equations for all of its phrases, exactly; LPOSS
takes at most ten steps of conjugate gradients. LPOSS's graph of nearest neighbours and its
power of the cosine are left out. The mean over all tokens that are alike and the attention of
CLIP-ES were worse or no better (docs/benchmarks/settings.md).

Shapes: B images, P phrases, N patches, D width.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

ALIKE: Final = 0.3  # t: tokens whose cosine is not above this share no heat

_TINY: Final = 1e-30


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
