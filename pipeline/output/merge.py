"""Make one dataset of the parts of an input, which were runs of their own (`input.part`).

Shards are linked, or copied within object storage. Their light columns are counted again, and
collisions of ids between parts are resolved. The parts stay as they are. The same command
resumes a merge that was stopped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from phrasebox.pipeline.config.run_config import RunConfig, differences
from phrasebox.pipeline.dataset.append_log import lines_of, log_files
from phrasebox.pipeline.dataset.folder import Dataset, open_dataset, open_shard
from phrasebox.pipeline.dataset.marks import EARLIER_FILE, MARKS_LOG, read_earlier_marks, read_marks
from phrasebox.pipeline.dataset.reviews import REVIEWS_LOG, read_reviews
from phrasebox.pipeline.dataset.shard_list import listed_shards, store_damaged
from phrasebox.pipeline.dataset.signature import is_own
from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.pipeline.output.decisions import Decisions
from phrasebox.pipeline.output.manifest import ENVIRONMENTS, Manifest
from phrasebox.pipeline.output.previous_run import INPUT, Identity, release_of
from phrasebox.pipeline.output.report import Report
from phrasebox.pipeline.output.request import REQUEST
from phrasebox.pipeline.output.shards import count_readable_rows, list_names
from phrasebox.stages.contract.errors import InputError, ResumeError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.shards import ShardFile, read_shard_file
from phrasebox.stages.files.storage import AnyPath, copy, write_text
from phrasebox.stages.write import Tally

PARTS: Final = "parts"  # The key of run.json and `dataset.json` for the folders that were merged

_THREADS: Final = 32  # Shards copied at once


def merge(parts: Sequence[Path | str], out: Path | str) -> Tally | None:
    """Write the dataset of all parts to `out`; return its counts, or None if it is complete already.

    Raises:
        InputError: A part is unfinished, damaged, missing, given twice, or of another input or
            other settings.
        ResumeError: `out` holds something else.
        OutputError: `out` cannot be written to.
    """
    datasets = [open_dataset(path) for path in parts]
    _reject_incomplete(datasets)
    _reject_other_settings(datasets)
    for dataset in datasets:  # damaged reviews and marks are rejected
        read_reviews(dataset.path)
        read_marks(dataset.path)
    manifest = datasets[0].manifest
    run = manifest["run"]
    settings = manifest["config"]
    sections = {
        "input": {**settings["input"], "part": None},
        "output": {**settings["output"], "path": str(out)},
    }
    config = RunConfig.model_validate({**settings, **sections})
    folder = DatasetFolder(out)
    paths = [str(dataset.path) for dataset in datasets]
    with folder.locked(), folder.writing():
        previous = folder.claim(
            Identity(
                # Those of the parts, so that their rows get none of another version.
                phrasebox_version=run["phrasebox_version"],
                schema_version=run["schema_version"],
                model_fingerprint=run["model_fingerprint"],
                calibration=run["calibration"],
                segmenter=run["segmenter"],
                config=_depends_on(manifest)["config"],
            )
        )
        if previous.state != "new" and previous.run.get(PARTS) != paths:
            raise ResumeError(f"{folder.path} holds another dataset: give another --out")
        if previous.state == "complete":
            return None
        environments = [
            environment
            for dataset in datasets
            for environment in dataset.manifest["run"].get(ENVIRONMENTS, [])
        ]
        distinct = [value for place, value in enumerate(environments) if value not in environments[:place]]
        decisions = Decisions.stored_in(run).to_json()
        info = {PARTS: paths, INPUT: run.get(INPUT), **decisions, ENVIRONMENTS: distinct}
        folder.start(previous, info)
        if (presence := datasets[0].path / folder.presence.name).exists():
            copy(presence, folder.presence)
        _copy_logs(datasets, folder)
        _copy_shards(datasets, folder)
        report = Report()
        for number, dataset in enumerate(datasets):
            counts = dataset.manifest["counts"]
            report.read(number, counts["read"], Counter(counts["skipped_by_reason"]))
        fields = {key: manifest[key] for key in ("model", "calibration", "scores")}
        may_sign = all(is_own(dataset.manifest) for dataset in datasets)
        return folder.finish(report, Manifest(config=config, may_sign=may_sign, **fields))


def _copy_logs(datasets: Sequence[Dataset], folder: DatasetFolder) -> None:
    """Copy the answers and marks of people, which name regions and samples by ids; the latest of a mark counts."""
    for log in (REVIEWS_LOG, MARKS_LOG):
        files = (file for dataset in datasets for file in log_files(dataset.path, log))
        for number, file in enumerate(files):
            (folder.path / f"{log}-{number}.jsonl").write_bytes(b"".join(lines_of(file)))
    earlier_marks = {
        name: mark for dataset in datasets for name, mark in read_earlier_marks(dataset.path).items()
    }
    if earlier_marks:
        write_text(folder.path / EARLIER_FILE, json.dumps(earlier_marks, ensure_ascii=False) + "\n")


def _copy_shards(datasets: Sequence[Dataset], folder: DatasetFolder) -> None:
    """Link or copy the shards that the folder does not have yet, and note them. Raise InputError for a damaged one."""
    digests = {
        dataset.path / "data" / shard.name: shard.sha256
        for dataset in datasets
        for shard in listed_shards(dataset.manifest, dataset.path) or ()
    }
    old_shards = folder.journal.shards

    def copy_shard(number: int, path: AnyPath) -> ShardFile | None:
        place = folder.data / f"{number:05d}.parquet"
        if place.name in old_shards:
            return None
        copy(path, place)
        with open_shard(place):  # the shard's own fault, and not that of the dataset's folder
            shard = read_shard_file(place)
        if shard.sha256 != digests.get(path, shard.sha256):
            place.unlink()
            store_damaged(path.parent.parent, [path.name])
            raise InputError(f"{path} is damaged: run the command of its part again")
        return shard

    paths = [path for dataset in datasets for path in dataset.shards]
    with ThreadPoolExecutor(_THREADS) as pool:
        for shard in filter(None, pool.map(copy_shard, range(len(paths)), paths)):
            folder.journal.shards[shard.name] = shard


def _reject_other_settings(datasets: Sequence[Dataset]) -> None:
    """Raise InputError unless the rows of all parts depend on the same settings, models and release."""
    first = _depends_on(datasets[0].manifest)
    first_version = datasets[0].manifest["run"]["phrasebox_version"]
    for dataset in datasets[1:]:
        version = dataset.manifest["run"]["phrasebox_version"]
        if release_of(version) != release_of(first_version):
            raise InputError(
                f"{dataset.path} was made with phrasebox {version}, and {datasets[0].path} with {first_version}, whose "
                "rows may differ: make all parts with one version"
            )
        if lines := differences(first, _depends_on(dataset.manifest)):
            raise InputError(f"{dataset.path} differs from {datasets[0].path}: {'; '.join(lines)}")


def _depends_on(manifest: Json) -> Json:
    """The values that rows of a part depend on, where parts of one whole agree."""
    run = manifest["run"]
    config = run["config"]
    decisions = Decisions.stored_in(run).of_any_part()
    # Machines differ in their libraries and in patches of phrasebox; the request has the part, and times of files.
    varying = {ENVIRONMENTS: None, REQUEST: None, "phrasebox_version": None}
    return {**run, **decisions, **varying, "config": {**config, "input": {**config["input"], "part": None}}}


def _part_of(dataset: Dataset) -> str | None:
    part: str | None = dataset.manifest["config"].get("input", {}).get("part")
    return part


def _reject_incomplete(datasets: Sequence[Dataset]) -> None:
    """Raise InputError unless the datasets are the parts of one whole, each of them once."""
    paths: dict[str, AnyPath] = {}
    for dataset in datasets:
        if (part := _part_of(dataset)) is None:
            raise InputError(f"{dataset.path} is a whole dataset, not a part: it was made without --part")
        if part in paths:
            raise InputError(f"{paths[part]} and {dataset.path} are both part {part}")
        paths[part] = dataset.path
    total = next(iter(paths)).partition("/")[2]
    expected_parts = [f"{number}/{total}" for number in range(1, int(total) + 1)]
    if other_parts := paths.keys() - expected_parts:
        raise InputError(
            f"parts of different splits: {', '.join(sorted(other_parts))}, and others of {total}"
        )
    if missing := [part for part in expected_parts if part not in paths]:
        raise InputError(f"missing: part {list_names(missing[:5], len(missing))}")
    for dataset in datasets:
        if count_readable_rows(dataset.shards) != dataset.manifest["counts"]["written"]:
            raise InputError(f"{dataset.path} has lost rows since it was finished: run its command again")
