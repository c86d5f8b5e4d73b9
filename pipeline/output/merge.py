"""Make one dataset of the parts of an input, which were runs of their own (`input.part`).

Shards are linked, or copied within object storage, or put together to larger ones; their light columns are counted
again, and ids that two parts share are set apart. The parts stay as they are. A merge that was stopped goes on with the
same command.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pipeline.config import RunConfig, differences
from pipeline.dataset.folder import Dataset, open_dataset
from pipeline.dataset.origin import is_own
from pipeline.dataset.reviews import FILES, lines_of, read_reviews
from pipeline.dataset.tally import group_shards
from pipeline.engines import cores_here
from pipeline.output.folder import DatasetFolder
from pipeline.output.former import COMMAND
from pipeline.output.shards import rows_in
from pipeline.summary import Report
from stages.contract.errors import InputError, ResumeError
from stages.shared.storage import AnyPath, copy, found_in, replacing, sizes_in
from stages.write import RollingParquet, Tally, row_group_rows

PARTS: Final = "parts"  # The key of run.json and `dataset.json` for the folders that were merged

COMPACT: Final = "compact"  # Their key for up to how many bytes shards were put together, else null

COMPACT_BYTES: Final = 256 << 20  # Most bytes of shards that are put together, unless one of them has more

_NOTED: Final = ("input_fingerprint", "outside_domain", "presence", "presence_images")
"""What a run decides once, for all of its parts."""

_THREADS: Final = 32  # Shards copied at once


def merge(parts: Sequence[Path | str], out: Path | str, *, compact: bool = False) -> Tally | None:
    """Write the dataset of all parts to `out`; return its counts, or None if it is there already.

    compact: Put shards together up to `COMPACT_BYTES`; this also takes one dataset that is no part.

    Raises:
        InputError: A part is unfinished, damaged, missing, there twice, or of another input or other settings.
        ResumeError: `out` holds something else.
        OutputError: `out` cannot be written to.
    """
    datasets = [open_dataset(path) for path in parts]
    if not (compact and [_part_of(dataset) for dataset in datasets] == [None]):
        _reject_incomplete(datasets)
    _reject_other_settings(datasets)
    list(map(read_reviews, [dataset.path for dataset in datasets]))  # which rejects damaged ones
    first, like = datasets[0].manifest, next((one for one in datasets if one.shards), datasets[0])
    run, settings = first["run"], first["config"]
    own = {"input": {**settings["input"], "part": None}, "output": {**settings["output"], "path": str(out)}}
    config = RunConfig.model_validate({**settings, **own})
    folder = DatasetFolder(out)
    of = {PARTS: [str(dataset.path) for dataset in datasets], COMPACT: COMPACT_BYTES if compact else None}
    noted = {**of, **{key: run[key] for key in _NOTED if key in run}}
    with folder.locked(), folder.writing():
        found = folder.look(
            config,
            run["model_fingerprint"],
            calibration=run["calibration"],
            segmenter=run["segmenter"],
            depends_on=_depends_on(first)["config"],
        )
        if found.state != "new" and {key: found.run.get(key) for key in of} != of:
            raise ResumeError(f"{folder.path} holds another dataset: give another --out")
        if found.state == "complete":
            return None
        folder.begin(found, noted)
        if (presence := datasets[0].path / folder.presence.name).exists():
            copy(presence, folder.presence)
        for number, file in enumerate(file for dataset in datasets for file in found_in(dataset.path, FILES)):
            (folder.path / f"reviews-{number}.jsonl").write_bytes(b"".join(lines_of(file)))  # they name regions by ids
        sizes = {path: size for one in datasets for path, size in sizes_in(one.path / "data", "*.parquet").items()}
        shards = [shard for dataset in datasets for shard in dataset.shards]
        groups = group_shards(shards, sizes, COMPACT_BYTES) if compact else [[shard] for shard in shards]
        places = [folder.data / f"{number:05d}.parquet" for number in range(len(groups))]
        there = set(folder.shards)
        todo = [(group, place) for group, place in zip(groups, places, strict=True) if place not in there]
        with ThreadPoolExecutor(cores_here() if compact else _THREADS) as pool:
            list(pool.map(lambda pair: _write(like, *pair), todo))
        report = Report()
        for number, dataset in enumerate(datasets):
            counts = dataset.manifest["counts"]
            report.read(number, counts["read"], Counter(counts["skipped_by_reason"]))
        own_parts = all(is_own(dataset.manifest) for dataset in datasets)
        return folder.finish(
            config,
            report,
            model=first["model"],
            calibration=first["calibration"],
            own=own_parts,
            environment=first["environment"],
            **first["scores"],
        )


def _write(like: Dataset, shards: Sequence[AnyPath], place: AnyPath) -> None:
    """Copy a shard, or put several together, with one row group in memory."""
    if len(shards) == 1:
        copy(shards[0], place)
        return
    group = row_group_rows(embed_images=like.has_images)
    writer = RollingParquet(lambda _: replacing(place), rows_per_file=sys.maxsize, rows_per_group=group)
    try:
        for table in replace(like, shards=tuple(shards)).tables(like.columns):
            writer.write(table)
    except BaseException:
        writer.abandon()
        raise
    writer.close()


def _reject_other_settings(datasets: Sequence[Dataset]) -> None:
    """Raise InputError unless the rows of all parts depend on the same settings and models."""
    first, *others = (_depends_on(dataset.manifest) for dataset in datasets)
    for dataset, values in zip(datasets[1:], others, strict=True):
        if differing := differences(first, values):
            raise InputError(f"{dataset.path} differs from {datasets[0].path}: {'; '.join(differing)}")


def _depends_on(manifest: Mapping[str, Any]) -> dict[str, Any]:
    run, config = manifest["run"], manifest["run"]["config"]
    outside, presence = run.get("outside_domain") or {}, run.get("presence")
    # Machines differ in the last digits of what they compute from the first images, and some do not compare them. Parts
    # differ in their commands.
    in_regions = outside.get("in_regions", False)
    decided = {COMMAND: None, "outside_domain": in_regions, "presence": presence is not None}
    return {**run, **decided, "config": {**config, "input": {**config["input"], "part": None}}}


def _part_of(dataset: Dataset) -> str | None:
    part: str | None = dataset.manifest["config"].get("input", {}).get("part")
    return part


def _reject_incomplete(datasets: Sequence[Dataset]) -> None:
    """Raise InputError unless there is each part of one whole, once."""
    found: dict[str, AnyPath] = {}
    for dataset in datasets:
        if (part := _part_of(dataset)) is None:
            raise InputError(f"{dataset.path} is a whole dataset, not a part: it was made without --part")
        if part in found:
            raise InputError(f"{found[part]} and {dataset.path} are both part {part}")
        found[part] = dataset.path
    of, *others = {part.partition("/")[2] for part in found}
    if others:
        raise InputError("; ".join(f"{path} is part {part}" for part, path in found.items()) + ": not of one whole")
    if missing := [part for part in (f"{number}/{of}" for number in range(1, int(of) + 1)) if part not in found]:
        raise InputError(f"missing: part {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}")
    for dataset in datasets:
        if sum(count or 0 for count in rows_in(dataset.shards)) != dataset.manifest["counts"]["written"]:
            raise InputError(f"{dataset.path} has lost rows since it was finished: run its command again")
