"""Attention flow (Abnar and Zuidema, ACL 2020, arXiv 2005.00928): the most that can run from class token to patch.

With M_b of `AttentionPath`:

    H_i = maximum flow from the class token after the last block to patch i before the first,
          in the graph of tokens and blocks whose edge from token j after block b to token k before it holds M_b[j, k]

At most 1 leaves the class token, and at most the sum of column i of M_1 arrives at patch i. In a deep model this last
cut is often the tightest, and the map shows less where the class token looks than where the first block does: so it was
for every patch of a photograph in the demo's model.

The flows are exact but for the capacities, which are whole multiples of 2^-30 as scipy's Dinic takes them. Most are
found in a part of the graph. Attention rollout is one flow of 1 from the class token to the tokens before a late block.
A flow from this supply through the first blocks is therefore possible in the whole graph, and where it fills one of the
two cuts above it is the largest one. Only where it does not, more blocks are taken in, at last all of them.

Deviations: none of the values at `residual: 0.5`, but that the paper divides a row by its sum, which heat is not.

Cost: a forward pass, and one maximum flow for each patch: 3 ms each for 196 patches and 12 blocks, and 16 ms each for
400 patches and 6 blocks (one core of an Intel Xeon), as long as many forward passes.

Shapes: T tokens (the class token first), L blocks.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from stages.explainers.attention.rollout import AttentionPath, ResidualConfig

Floats = NDArray[np.float64]

UNIT: Final = 2**30
"""Capacity of an edge that holds 1; more than twice of it does not fit the integers that scipy takes."""

FIRST_BLOCKS: Final = 3
"""How many blocks of the model, from its input, are tried first. With 2 few flows fill a cut, with 3 most do (the
demo's model on photographs)."""


class AttentionFlowConfig(ResidualConfig):
    """Attention flow."""

    kind: Literal["attention_flow"] = "attention_flow"


class AttentionFlow(AttentionPath[AttentionFlowConfig]):
    """Maximum flow through the attention of all blocks."""

    config_type = AttentionFlowConfig
    cost = "perturbation"

    def _heat(self, mixed: Tensor) -> Tensor:
        return torch.from_numpy(flows(mixed.double().cpu().numpy())).to(mixed)


def flows(mixed: Floats) -> Floats:
    """M of all blocks (L, T, T), the first block first -> maximum flows to all tokens before it (T,), within 10^-6."""
    layers, tokens = mixed.shape[:2]
    supplies = [np.eye(tokens)[0]]
    for block in mixed[:0:-1]:
        supplies.append(supplies[-1] @ block)
    supplies.reverse()  # now the one before block n + 2 is number n
    bounds = np.minimum(1.0, mixed[0].sum(axis=0))
    found = np.zeros(tokens)
    missing = np.arange(tokens)
    for blocks in range(min(FIRST_BLOCKS, layers), layers + 1):
        graph = _Graph(supplies[blocks - 1], mixed[:blocks])
        for token in missing.tolist():
            found[token] = graph.flow_to(token)
        missing = missing[found[missing] < bounds[missing] - 2 * tokens / UNIT]
        if not len(missing):
            break
    return found


class _Graph:
    """A source, some of the first blocks with M (L', T, T), and one token at their end.

    The source gives at most `supply` (T,) to the tokens after the last of these blocks.
    """

    def __init__(self, supply: Floats, mixed: Floats) -> None:
        tokens, inner = len(supply), (len(mixed) - 1) * len(supply)
        # Row by row: the source, the tokens after each block but the first, those after the first, and the end.
        before = 1 + tokens * np.arange(len(mixed))[:, None] + np.arange(tokens)
        end = 1 + inner + tokens
        columns = [before[0], np.repeat(before[1:], tokens, axis=0).ravel(), np.full(tokens, end)]
        self.columns = np.concatenate(columns).astype(np.int32)
        counts = np.repeat([tokens, 1, 0], [1 + inner, tokens, 1])
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self.capacities = _whole(np.concatenate([supply, mixed[:0:-1].ravel()]))
        self.into = _whole(mixed[0])
        self.end = end

    def flow_to(self, token: int) -> float:
        """Return the maximum flow to a token before the first block."""
        capacities = np.concatenate([self.capacities, self.into[:, token]])
        graph = csr_array((capacities, self.columns, self.starts), shape=(self.end + 1, self.end + 1))
        return float(maximum_flow(graph, 0, self.end).flow_value) / UNIT


def _whole(capacities: Floats) -> NDArray[np.int32]:
    return np.floor(UNIT * capacities).astype(np.int32)
