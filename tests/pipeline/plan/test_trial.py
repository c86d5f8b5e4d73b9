"""The run over the first samples is a real one, in a process of its own."""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.plan.trial import FirstSamples, tried
from stages.contract.errors import ConfigError, ResourceError
from stages.contract.records import Sample
from stages.read import make_reader, plan_shards
from tests.pipeline.light import write_captions


def config_of(folder: Path, **values: Any) -> RunConfig:
    source = {"kind": "jsonl", "path": str(folder / "captions.jsonl"), "image_root": str(folder / "images")}
    return RunConfig.model_validate(
        {"input": source, "model": {"name": "demo"}, "engine": {"kind": "inline"}, **values}
    )


def test_a_trial_ends_after_the_first_samples(
    scenes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    trial = tried(config_of(scenes_folder, output={"path": str(tmp_path / "never"), "max_error_share": 0}))
    assert trial.images == 12
    assert trial.ready_s > 0
    assert trial.end_s > 0
    assert list(tmp_path.iterdir()) == [], "nothing is left, and the run's own folder is not touched"


def test_what_refuses_the_run_refuses_the_trial(scenes_folder: Path) -> None:
    with pytest.raises(ConfigError, match="blocks"):
        tried(config_of(scenes_folder, explain={"kind": "grad_eclip", "blocks": 99}))


def test_a_trial_that_dies_says_so(scenes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.plan.trial._try", _dies)
    with pytest.raises(ResourceError, match="without an answer"):
        tried(config_of(scenes_folder))


def _dies(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("shard_size", "shards", "each"), [(1000, 1, 32), (50, 2, 16), (10, 4, 8), (1, 4, 1)])
def test_the_first_samples_come_from_several_shards(tmp_path: Path, shard_size: int, shards: int, each: int) -> None:
    source = {"kind": "jsonl", "path": str(write_captions(tmp_path, ["cat"] * 100)), "shard_size": shard_size}
    source["image_root"] = str(tmp_path)
    reader = FirstSamples(make_reader(RunConfig.model_validate({"input": source}).input), 4, 32)
    planned = plan_shards(reader)
    assert [shard.samples for shard in planned] == [each] * shards
    read = Counter(item.source for shard in planned for item in reader.read(shard) if isinstance(item, Sample))
    assert sum(read.values()) == len(read) == each * shards
