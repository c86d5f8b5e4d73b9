"""Make one dataset of the parts of an input, which were runs of their own (`input.part`).

Shards are linked, or copied within object storage; their light columns are counted again, and ids that two parts share
are set apart. The parts stay as they are. A merge that was stopped goes on with the same command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from pipeline.config import RunConfig, differences
from pipeline.dataset.folder import Dataset, open_dataset
from pipeline.dataset.origin import is_own
from pipeline.output.folder import DatasetFolder
from pipeline.summary import Report
from stages.contract.errors import InputError, ResumeError
from stages.shared.storage import AnyPath, copy
from stages.write import Tally

PARTS: Final = "parts"  # The key of run.json and `dataset.json` for the folders that were merged

_NOTED: Final = ("input_fingerprint", "outside_domain", "presence")  # What a run decides once, for all of its parts

_THREADS: Final = 32  # Shards copied at once


def merge(parts: Sequence[Path | str], out: Path | str) -> Tally | None:
    """Write the dataset of all parts to `out`; return its counts, or None if it is there already.

    Raises:
        InputError: A part is unfinished, damaged, missing, there twice, of another input or of other settings.
        ResumeError: `out` holds something else.
        OutputError: `out` cannot be written to.
    """
    datasets = [open_dataset(path) for path in parts]
    _reject_incomplete(datasets)
    _reject_other_settings(datasets)
    first = datasets[0].manifest
    run, settings = first["run"], first["config"]
    own = {"input": {**settings["input"], "part": None}, "output": {**settings["output"], "path": str(out)}}
    config = RunConfig.model_validate({**settings, **own})
    folder = DatasetFolder(out)
    noted = {PARTS: [str(dataset.path) for dataset in datasets], **{key: run[key] for key in _NOTED if key in run}}
    with folder.locked(), folder.writing():
        found = folder.look(
            config, run["model_fingerprint"], calibration=run["calibration"], segmenter=run["segmenter"]
        )
        if found.state != "new" and found.run.get(PARTS) != noted[PARTS]:
            raise ResumeError(f"{folder.path} holds another dataset: give another --out")
        if found.state == "complete":
            return None
        folder.begin(found, noted)
        if (presence := datasets[0].path / folder.presence.name).exists():
            copy(presence, folder.presence)
        shards = [shard for dataset in datasets for shard in dataset.shards]
        places = [folder.data / f"{number:05d}.parquet" for number in range(len(shards))]
        there = set(folder.shards)
        todo = [(shard, place) for shard, place in zip(shards, places, strict=True) if place not in there]
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda pair: copy(*pair), todo))
        report = Report()
        for number, dataset in enumerate(datasets):
            counts = dataset.manifest["counts"]
            report.read(number, counts["read"], Counter(counts["skipped_by_reason"]))
        own_parts = all(is_own(dataset.manifest) for dataset in datasets)
        return folder.finish(
            config, report, model=first["model"], calibration=first["calibration"], own=own_parts, **first["scores"]
        )


def _reject_other_settings(datasets: Sequence[Dataset]) -> None:
    """Raise InputError unless the rows of all parts depend on the same settings and models."""
    first, *others = (_depends_on(dataset.manifest) for dataset in datasets)
    for dataset, values in zip(datasets[1:], others, strict=True):
        if differing := differences(first, values):
            raise InputError(f"{dataset.path} differs from {datasets[0].path}: {'; '.join(differing)}")


def _depends_on(manifest: Mapping[str, Any]) -> dict[str, Any]:
    run = manifest["run"]
    config = run["config"]
    return {**run, "config": {**config, "input": {**config["input"], "part": None}}}


def _reject_incomplete(datasets: Sequence[Dataset]) -> None:
    """Raise InputError unless there is each part of one whole, once."""
    found: dict[str, AnyPath] = {}
    for dataset in datasets:
        part = dataset.manifest["config"].get("input", {}).get("part")
        if part is None:
            raise InputError(f"{dataset.path} is a whole dataset, not a part: it was made without --part")
        if part in found:
            raise InputError(f"{found[part]} and {dataset.path} are both part {part}")
        found[part] = dataset.path
    wholes = {part.partition("/")[2] for part in found}
    if len(wholes) > 1:
        raise InputError("; ".join(f"{path} is part {part}" for part, path in found.items()) + ": not of one whole")
    of = int(wholes.pop())
    missing = [part for part in (f"{number}/{of}" for number in range(1, of + 1)) if part not in found]
    if missing:
        raise InputError(f"missing: part {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}")
