"""Sources of regions on the simulated device: the CPU's rows, passes that overlap, and a full memory."""

from __future__ import annotations

from typing import Any

import pytest

from phrasebox.stages.contract.records import Record
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.sources.grid import CropSource, CropSourceConfig, GridSource, GridSourceConfig
from tests.cuda.both import both, records
from tests.cuda.simulated import SimulatedCuda

SOURCES = {"grid": (GridSource, GridSourceConfig), "crops": (CropSource, CropSourceConfig)}


def answers(records: list[Record]) -> list[list[tuple[Any, ...]]]:
    return [
        [
            (each.phrase_index, each.box_xywh_px, round(each.score, 3), round(each.similarity, 4))
            for each in one.regions
        ]
        for one in records
    ]


@pytest.mark.parametrize(
    ("kind", "by", "tower"),
    [("grid", "roi", "class token"), ("crops", "crop", "ResNet")],
)
def test_regions_are_those_of_a_cpu_with_one_wait_a_pass(
    kind: str, by: Any, tower: str, cuda: SimulatedCuda, monkeypatch
) -> None:
    source, config = SOURCES[kind]
    given = records(9, 64)
    region_records = []
    description = describe(ModelConfig(name="demo"))
    for model in both(tower):
        made = source(config(by=by), ModelConfig(batch_size=4), description)
        with monkeypatch.context() as patched:
            patched.setattr("phrasebox.stages.model.load.load", lambda *_, model=model, **__: model)
            made.setup()
        made.process(given)  # which learns the texts
        cuda.waits.clear()
        region_records.append(made.process(given))
    assert answers(region_records[1]) == answers(region_records[0])
    images = sum(bool(record.phrases) for record in given)
    assert any(record.regions for record in region_records[1])
    if by == "roi":
        calls = -(-len(given) // 4)
        assert cuda.waits == {"event": calls, "device to host": images}, "the latter are the cosines' texts"
