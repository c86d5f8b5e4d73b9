"""Explainers in float64, so that a comparison with a paper's equations shows more than rounding."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from phrasebox.stages.contract.records import HeatMap
from phrasebox.stages.explain import base


def _rounded(*, values: NDArray[Any], **rest: Any) -> HeatMap:
    return HeatMap(values=values.astype(np.float32), **rest)


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let models and explainers compute in float64 where they ask for float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(nn.Module, "float", nn.Module.double)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(base, "HeatMap", _rounded)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
