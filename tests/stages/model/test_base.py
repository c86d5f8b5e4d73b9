from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.model.base import ClipModel, TextCache
from stages.model.open_clip import from_open_clip
from tests.factories import SPEC, tiny_clip


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return from_open_clip(tiny_clip(), open_clip.get_tokenizer("ViT-B-32"), SPEC)


class Counted:
    """A model's text encoder that remembers what it was asked."""

    def __init__(self, model: ClipModel) -> None:
        self.asked: list[str] = []
        self._encode = model.encode_text
        self.model = replace(model, encode_text=self)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked.extend(texts)
        return self._encode(texts)


def test_unit_rows_in_the_order_of_the_texts(model: ClipModel) -> None:
    rows = TextCache(model)(["dog", "cat", "dog"])
    wanted = F.normalize(model.encode_text(["dog", "cat", "dog"]), dim=-1)
    assert rows.dtype == torch.float32
    assert torch.allclose(rows, wanted, atol=1e-6)
    assert torch.equal(rows[0], rows[2])


def test_each_text_is_computed_once(model: ClipModel) -> None:
    counted = Counted(model)
    cache = TextCache(counted.model)
    cache(["dog", "cat", "dog"])
    cache(["cat", "bird"])
    cache(["bird", "dog", "cat"])
    assert counted.asked == ["dog", "cat", "bird"]


def test_templates_are_filled_and_averaged(model: ClipModel) -> None:
    counted = Counted(model)
    cache = TextCache(counted.model, ("a photo of a {}", "{} and {}"))
    rows = cache(["dog", "a {} b"])
    assert counted.asked == ["a photo of a dog", "dog and dog", "a photo of a a {} b", "a {} b and a {} b"]
    for row, text in zip(rows, ["dog", "a {} b"], strict=True):
        parts = [template.replace("{}", text) for template in cache.templates]
        mean = F.normalize(model.encode_text(parts), dim=-1).mean(dim=0)
        assert torch.allclose(row, F.normalize(mean, dim=-1), atol=1e-6)


def test_the_texts_that_were_not_used_for_longest_are_forgotten(model: ClipModel) -> None:
    counted = Counted(model)
    cache = TextCache(counted.model, max_texts=2)
    first = cache(["a", "b", "c"])
    assert len(first) == 3, "more than fit may be asked for at once"
    cache(["b", "c"])
    assert counted.asked == ["a", "b", "c"]
    again = cache(["a"])
    assert counted.asked == ["a", "b", "c", "a"]
    assert torch.equal(again[0], first[0])
    cache(["c", "b"])
    assert counted.asked == ["a", "b", "c", "a", "b"]


def test_a_phrase_of_every_batch_is_embedded_once(model: ClipModel) -> None:
    counted = Counted(model)
    cache = TextCache(counted.model, max_texts=5)
    for number in range(20):
        cache(["dog", f"new {number}", f"newer {number}"])
    assert counted.asked.count("dog") == 1
    assert len(counted.asked) == 41


def test_a_kept_text_keeps_nothing_of_its_batch(model: ClipModel) -> None:
    cache = TextCache(model, max_texts=1)
    cache([str(number) for number in range(10)])
    (row,) = cache._rows.values()
    assert row.untyped_storage().nbytes() == model.embed_dim * 4
