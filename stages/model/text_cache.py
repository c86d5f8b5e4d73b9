"""Unit embeddings of texts: each unique text is computed once, and all lie in one table."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.device import to_device

_FIRST_ROWS: Final = 1024  # of a table; a full one is doubled


class _Table:
    """Rows of numbers on a device that are given out and taken back. Row 0 has zeros and stays.

    One product of the host's numbers and one operation read any rows, where single tensors would be stacked.
    """

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        self._values: Tensor | None = None
        self._free: list[int] = []

    def add(self, values: Tensor) -> list[int]:
        """Store values (n, E), n > 0. Return the numbers of their rows."""
        if self._values is None:
            self._values = values.new_zeros(1, values.shape[1])
        if len(self._free) < len(values):
            self._grow(len(values) - len(self._free))
        rows = [self._free.pop() for _ in range(len(values))]
        self._values[to_device(torch.tensor(rows), values.device)] = values
        return rows

    def read(self, rows: Tensor) -> Tensor:
        """Numbers of rows (n,), of which one was added before -> a copy of their values (n, E)."""
        if self._values is None:
            raise ValueError("expected a table with rows, got an empty one")
        return self._values[to_device(rows, self._values.device)]

    def release(self, row: int) -> None:
        """Let later values take a row."""
        self._free.append(row)

    def _grow(self, missing: int) -> None:
        """Make room for more rows: twice as many as there are, within the most, or what is missing if that is more."""
        assert self._values is not None  # noqa: S101
        rows = len(self._values)
        added = max(missing, min(max(rows, _FIRST_ROWS), 1 + self._most_rows - rows))
        self._values = torch.cat([self._values, self._values.new_zeros(added, self._values.shape[1])])
        self._free += range(rows + added - 1, rows - 1, -1)


@dataclass
class TextCache:
    """Unit text embeddings; each unique text is computed once.

    With templates (each holds one `{}`) the unit embeddings of the filled templates are
    averaged and normalised again, as CLIP's zero-shot classifiers do. Beyond `max_texts` the
    least recently used texts are forgotten; 200,000 embeddings of 768 floats are 0.6 GB of the
    device's memory. `set_aside` keeps `max_aside` more.
    """

    model: ClipModel
    templates: tuple[str, ...] = ("{}",)
    max_texts: int = 200_000
    max_aside: int = 4096
    _rows: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _aside: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._table = _Table(self.max_texts + self.max_aside)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts, at least one -> float32 (len(texts), E) of unit length on the model's device."""
        self._embed(texts)
        embeddings = self._table.read(torch.tensor([self._rows[text] for text in texts]))
        self._forget()
        return embeddings

    def embed_ahead(self, texts: Sequence[str]) -> None:
        """Embed texts that are needed next: many in one call fill the forward passes."""
        self._embed(texts)
        self._forget()

    def set_aside(self, texts: Iterable[str]) -> None:
        """Forget texts that seldom come again, such as captions, once `max_aside` others have followed them."""
        for text in texts:
            row = self._rows.pop(text, None)
            if row is not None:
                self._aside[text] = row
        while len(self._aside) > self.max_aside:
            self._table.release(self._aside.popitem(last=False)[1])

    def embed_padded(self, texts: Sequence[Sequence[str]], step: int) -> Tensor:
        """Texts of B images, not all without texts -> float32 (B, P, E) on the model's device.

        P is the largest number of texts, rounded up to a multiple of `step`; rows of zeros
        stand for missing texts.
        """
        self._embed([*chain(*texts)])
        longest = -(-max(map(len, texts)) // step) * step
        rows = [
            [*(self._rows[text] for text in texts_of_image), *[0] * (longest - len(texts_of_image))]
            for texts_of_image in texts
        ]
        embeddings: Tensor = self._table.read(torch.tensor(rows))
        self._forget()
        return embeddings

    def _embed(self, texts: Sequence[str]) -> None:
        new = []
        for text in dict.fromkeys(texts):
            if text in self._rows:
                self._rows.move_to_end(text)
            elif text in self._aside:
                self._rows[text] = self._aside.pop(text)
            else:
                new.append(text)
        if new:
            self._rows.update(zip(new, self._table.add(self._compute(new)), strict=True))

    @torch.no_grad()
    def _compute(self, texts: Sequence[str]) -> Tensor:
        prompts = [template.replace("{}", text) for text in texts for template in self.templates]
        e = F.normalize(self.model.encode_text(prompts).float(), dim=-1)
        return F.normalize(e.unflatten(0, (len(texts), len(self.templates))).mean(dim=1), dim=-1)

    def _forget(self) -> None:
        while len(self._rows) > self.max_texts:
            self._table.release(self._rows.popitem(last=False)[1])


def templates_of(setting: Sequence[str] | str) -> tuple[str, ...]:
    """Return the text templates of a setting, with `{}` for the phrase; `openai_imagenet` stands for its 80."""
    if setting == "openai_imagenet":
        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    return tuple(setting)
