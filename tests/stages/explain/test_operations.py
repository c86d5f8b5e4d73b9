"""What a batch asks of the device, counted while the real code computes: a GPU pays for each operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from phrasebox.stages.contract.records import Record
from phrasebox.stages.explain.config import GradEclipConfig
from phrasebox.stages.explain.stage import ExplainStage, ExplainStageConfig
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.model.text_encoder import PASSES, TextTower
from phrasebox.stages.model.tokenizer import ClipTokenizer
from tests.factories import SPEC, tiny_clip
from tests.stages.explain.test_stage import make_record

IMAGES = 32

MOST = 400
"""Operations of a batch of a tiny model whose texts take one forward pass: torch's versions differ by some."""


class Counting(TorchDispatchMode):
    """Counts the operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        self.operations += not any(
            each.alias_info is not None and not each.alias_info.is_write
            for each in function._schema.arguments
        )
        return function(*arguments, **(options or {}))


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return from_open_clip(tiny_clip(), ClipTokenizer(), SPEC)


def records(phrases: int, captions: int) -> list[Record]:
    """Images with so many phrases and captions, all of them different."""
    made = []
    for number in range(IMAGES):
        texts = [f"dog {number} {place}" for place in range(phrases)]
        record = make_record(number, texts)
        sample = replace(
            record.sample, captions=tuple(f"a cat runs past {number} {place}" for place in range(captions))
        )
        made.append(replace(record, sample=sample))
    return made


def count(model: ClipModel, batch: Sequence[Record], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return the operations of a batch, and the forward passes of its texts."""
    stage = ExplainStage(
        ExplainStageConfig(model=ModelConfig(batch_size=IMAGES), explainer=GradEclipConfig()), model
    )
    stage.setup()
    passes: list[tuple[int, ...]] = []
    encode = TextTower.encode

    def record_pass(tower: TextTower, tokens: torch.Tensor) -> torch.Tensor:
        passes.append(tuple(tokens.shape))
        return encode(tower, tokens)

    monkeypatch.setattr(TextTower, "encode", record_pass)
    monkeypatch.setattr(model.encode_text, "_passes", PASSES["cuda"])
    with Counting() as counting:
        answers = stage.process(batch)
    monkeypatch.undo()
    assert all(len(answer.heat_maps) == len(answer.phrases) for answer in answers)
    return counting.operations, len(passes)


def test_operations_do_not_grow_with_the_texts(model: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """224 texts have as many as 64: what is done for each would be the most of a GPU's launches."""
    few = count(model, records(1, 1), monkeypatch)
    many = count(model, records(4, 3), monkeypatch)
    assert few == many
    assert few[1] == 1, "one forward pass of texts"
    assert few[0] < MOST


def test_operations_grow_with_steps_of_phrases(model: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    operations = [count(model, records(phrases, 1), monkeypatch)[0] for phrases in (4, 12, 20)]
    assert operations[0] < operations[1]
    assert operations[2] - operations[1] == pytest.approx(operations[1] - operations[0], rel=0.2)


def test_a_batch_of_known_phrases_has_a_pass_for_its_captions(
    model: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = records(3, 5)
    phrases = batch[0].phrases
    assert count(model, [replace(record, phrases=phrases) for record in batch], monkeypatch)[1] == 1
