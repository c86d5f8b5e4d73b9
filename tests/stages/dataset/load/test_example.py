"""The training loop of the package's docstring, run as it stands there."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

import open_clip
import torch

import stages.dataset.load
from tests.factories import tiny_clip


def code_of(documentation: str) -> str:
    """Its indented lines."""
    lines = documentation.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("    "))
    last = max(number for number, line in enumerate(lines) if line.startswith("    "))
    return textwrap.dedent("\n".join(lines[first : last + 1]))


def test_it_trains(inline_dataset: Path) -> None:
    code = code_of(inspect.getdoc(stages.dataset.load) or "")
    assert len([line for line in code.splitlines() if line]) <= 40
    names: dict[str, Any] = {}
    exec(code, names)
    torch.manual_seed(0)
    model = tiny_clip(spread=1.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of a model this small, several threads mostly wait for each other
    try:
        losses = list(names["train"](inline_dataset, model, open_clip.get_tokenizer("ViT-B-16"), 8, 6, 1e-3))
    finally:
        torch.set_num_threads(threads)
    assert len(losses) >= 8 * 2
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    assert last < first / 2, losses
