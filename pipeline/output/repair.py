"""Make the manifest of a finished dataset again, without its input: from its shards, which say what made them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.dataset.folder import check_folder
from phrasebox.pipeline.dataset.shard_list import SHARDS, list_entries, listed_shards, manifest_text
from phrasebox.pipeline.dataset.signature import is_own
from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.pipeline.output.manifest import Manifest
from phrasebox.pipeline.output.previous_run import Identity, PreviousRun
from phrasebox.pipeline.output.report import Report
from phrasebox.pipeline.output.shards import map_in_threads
from phrasebox.pipeline.terminal import counted
from phrasebox.stages.contract.errors import InputError, ResumeError
from phrasebox.stages.contract.schema_versions import check_version, lift_manifest
from phrasebox.stages.files.shards import read_shard_file
from phrasebox.stages.files.storage import write_text
from phrasebox.stages.write import Tally

_IDENTITY: Final = Identity.__dataclass_fields__


def repair(dataset: Path | str) -> str:
    """Make a lost or damaged `dataset.json` again, or add a list of shards to an old one; return a line about it.

    All shards have to be there: without the list nobody knows which are not.

    Raises:
        InputError: There is no such folder, or the dataset lacks what only its run can make again.
        ResumeError: The folder holds an unfinished run, or one that its shards do not name.
        OutputError: The folder cannot be written to.
        SchemaError: A newer phrasebox has made the dataset.
    """
    folder = DatasetFolder(dataset)
    check_folder(folder.path, folder.written_as)
    with folder.locked(), folder.writing():
        previous = folder.recover_previous_run()
        if previous.fault:
            raise ResumeError(previous.fault)
        if previous.manifest:
            return _add_list(folder, previous)
        if not previous.recovered:
            raise ResumeError(f"{folder.path} holds no finished dataset: run the same command again")
        check_version(folder.written_as, previous.origin)
        total = _make_manifest(folder, previous)
    counts = f"{counted(total.rows, 'row')} in {counted(total.files, 'shard')}"
    return f"{folder.path / 'dataset.json'} was made again for all that is there: {counts}"


def _add_list(folder: DatasetFolder, previous: PreviousRun) -> str:
    """List the shards of a dataset that was made before there was a list."""
    if listed_shards(previous.manifest, folder.path / "dataset.json") is not None:
        return f"{folder.path / 'dataset.json'} needs no repair"
    if previous.state != "complete":
        raise InputError(f"{folder.path} has lost rows: run its command again")
    shards = map_in_threads(read_shard_file, previous.shards)
    write_text(
        folder.path / "dataset.json", manifest_text({**previous.manifest, SHARDS: list_entries(shards)})
    )
    return f"{folder.path / 'dataset.json'} now lists {counted(len(shards), 'shard')}"


def _make_manifest(folder: DatasetFolder, previous: PreviousRun) -> Tally:
    """Raise InputError if a shard does not count: its rows are then missing."""
    origin = lift_manifest(previous.origin)
    manifest = Manifest(
        config=RunConfig.model_validate(origin["config"]),
        may_sign=is_own(previous.origin),
        **{name: origin[name] for name in ("model", "calibration", "scores")},
    )
    identity = Identity(**{name: previous.run[name] for name in _IDENTITY})
    folder.start(folder.claim(identity))
    if faults := folder.take_notes()[1:]:
        raise InputError(f"{faults[0]}. Run the same command again")
    report = Report()
    report.read(0, len(folder.journal.keys), report.skipped)
    return folder.finish(report, manifest)
