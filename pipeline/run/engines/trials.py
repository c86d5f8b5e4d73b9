"""Samples that kill the process which computes them: who is suspected, and when one is given up.

A process that is killed, by a fault in a library or for its memory, cannot say which sample it had in
hand. So it is noted beforehand: on Ray by the ledger, in one process in a file of the dataset's
folder. What was in hand at a death is computed one by one the next time. A sample at which
processes die again and again becomes a row with an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from phrasebox.stages.contract.errors import RowError
from phrasebox.stages.contract.records import Record, is_among
from phrasebox.stages.contract.values import Integers
from phrasebox.stages.files.storage import AnyPath

MOST_DEATHS: Final = 3
"""Deaths over one sample after which it becomes an error. Two could be nodes that happened to
leave, or somebody's kill -9."""

FIRST_IMAGES: Final = 2**63
"""What stands for the first images, which decide settings, among the keys of samples. No key is as
large."""


def given_up(record: Record, detail: str) -> Record:
    """Return the row of a sample that is not tried any more. detail: Who died where, and what to do."""
    error = RowError(reason="worker_died", detail=f"{record.sample.source}: {detail}")
    return replace(
        record, error=error, phrases=(), dropped_phrases=0, pixels=None, heat_maps=(), regions=()
    )


class Trials:
    """The samples that one process has in hand, in a file; and how many processes died at a sample before.

    Nothing is noted in object storage, where each note would be a request.

    Args:
        path: The file.
        done: The keys of samples that have a row, sorted. Their deaths are forgotten.
    """

    def __init__(self, path: AnyPath, done: Integers) -> None:
        self._path = path if isinstance(path, Path) else None
        deaths, in_hand = self._read()
        for key in in_hand:
            deaths[key] = deaths.get(key, 0) + 1
        self._deaths = {
            key: count for key, count in deaths.items() if key == FIRST_IMAGES or not is_among(key, done)
        }

    @property
    def suspects(self) -> int:
        """The number of samples at which a process may have died."""
        return len(self._deaths.keys() - {FIRST_IMAGES})

    def deaths_of(self, key: int) -> int:
        """Return how many processes died with a sample in hand."""
        return self._deaths.get(key, 0)

    def forget(self, key: int) -> None:
        """Forget the deaths at a sample."""
        self._deaths.pop(key, None)

    def take(self, keys: Sequence[int]) -> None:
        """Note that these samples are in hand now, and no others; without any, that this process was not killed."""
        if self._path is None:
            return
        if keys or self._deaths:
            # Of a process that is killed, and not of a machine: nothing has to reach the disk.
            deaths = [[key, count] for key, count in self._deaths.items()]
            self._path.write_text(json.dumps({"deaths": deaths, "in_hand": [*keys]}), encoding="utf-8")
        else:
            self._path.unlink(missing_ok=True)

    def _read(self) -> tuple[dict[int, int], list[int]]:
        try:
            values = {} if self._path is None else json.loads(self._path.read_text(encoding="utf-8"))
            return {int(key): int(count) for key, count in values["deaths"]}, [*map(int, values["in_hand"])]
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # killed in the middle of a note
            return {}, []
