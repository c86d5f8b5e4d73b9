"""The simulated fleet: what its stages give is real enough for the engine, and its processes are told apart."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.config import RunConfig
from pipeline.engines.inline import run_stages
from stages.contract.records import Record, Sample
from stages.contract.schema import records_to_rows, records_to_table, table_to_records
from stages.read import make_reader, plan_shards
from tests.soak.simulated import Load, NoisePixels, NoRegions, SleepingModel, SpacedCaptions, throughput, write_captions


def test_the_light_stages_make_rows_like_real_ones(tmp_path: Path) -> None:
    source = {"kind": "jsonl", "path": str(write_captions(tmp_path, 5)), "image_root": str(tmp_path)}
    reader = make_reader(RunConfig.model_validate({"input": source}).input)
    samples = [item for shard in plan_shards(reader) for item in reader.read(shard) if isinstance(item, Sample)]
    stages = (SpacedCaptions(), NoisePixels(16), SleepingModel(0.01, 32), NoRegions())
    for stage in stages:
        stage.setup()
    begin = time.perf_counter()
    records = [Record.start(sample) for sample in samples]
    records = run_stages(stages[:2], records, lambda *_: None)
    assert all(record.pixels is not None for record in records)
    records = table_to_records(records_to_table(records))
    records = run_stages(stages[2:], records, lambda *_: None)
    assert time.perf_counter() - begin >= 0.01
    rows = records_to_rows(records, embed_images=False, heat_maps=True).to_pylist()
    assert len(rows) == 5
    for row, record in zip(rows, records, strict=True):
        assert row["error"] is None
        for phrase in record.phrases:
            assert record.sample.captions[phrase.caption_index][phrase.start : phrase.end] == phrase.text
        assert len(row["heat_maps"]) == len({phrase.text for phrase in record.phrases}) > 0


def test_a_busy_process_shows_as_busy() -> None:
    code = "import time; end = time.process_time() + 0.6\nwhile time.process_time() < end: pass\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        load = Load(process.pid)
        start = time.time()
        load.look()
        while sum(psutil.Process(process.pid).cpu_times()[:2]) < 0.5:
            time.sleep(0.05)
        load.look()
        end = time.time()
        cores, _ = load.between(start, end)
        assert set(cores) == {"driver"}
        assert 0.4 <= cores["driver"] * (load.seen[-1][0] - load.seen[0][0]) <= 1.0
    finally:
        process.kill()
        process.wait()


def test_what_a_load_has_not_seen_twice_is_no_figure() -> None:
    load = Load(os.getpid())
    load.look()
    with pytest.raises(ValueError, match="two samples"):
        load.between(0, time.time() + 1)


@pytest.mark.ray
@pytest.mark.slow
def test_sleeping_workers_are_fed_by_the_real_engine() -> None:
    figure = throughput(2, seconds=0.5, batch=32, side_px=32, hold_s=12.0)
    assert figure["workers"] == 2
    assert 0 < figure["of_ideal"] <= 1.05
    assert {"driver", "ledger", "model worker", "raylet", "tasks"} <= set(figure["cores_by_kind"])
    assert figure["model_worker_mb"] > 20
    assert figure["left_behind"] == []
