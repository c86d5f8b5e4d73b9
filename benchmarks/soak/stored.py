"""Runs into object storage, on a server of this machine: uploads are cut off, and runs sleep past their lease."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.soak.campaign import SIGNALS, Campaign
from benchmarks.soak.damage import Fault
from benchmarks.soak.judgement import Judgement
from benchmarks.soak.lives import Life, Prepare, interrupt_upload, shorten_lease
from phrasebox.stages.files.storage import AnyPath, found_in, place_of
from tests.object_storage import object_storage

LEASE_SECONDS: Final = 15.0  # a run gives its lease up if a renewal takes more than three quarters of them

OBJECTS: Final = (
    r"/data/[^/]+\.parquet",
    r"dataset\.json",
    r"run\.json",
    r"/journal-",
    r"categories\.parquet",
)
"""Patterns of the objects whose upload is cut off."""

TAKEN_OVER: Final = r"another run took .* over while this one did not answer"


@dataclass
class StoredCampaign(Campaign):
    """As `Campaign`, with one dataset in object storage for each fault."""

    number: int = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of faults of this campaign."""
        return tuple(HURTS)

    @property
    def out(self) -> AnyPath:
        """The dataset of this episode."""
        return place_of(f"s3://bucket/{self.folder.name}/{self.number}")

    def start(self, *prepare: Prepare, options: Sequence[str] = ()) -> Life:
        """Start the command in a process of its own. It waits for a lease of seconds, where users wait for a minute."""
        return super().start(shorten_lease(LEASE_SECONDS), *prepare, options=options)

    def _live_through_episode(self) -> None:
        self.number += 1
        kind = self.plan.pop()
        self.write_input(self.lines[: self.images])
        hurt = [replace(fault, kind=kind) for fault in HURTS[kind](self)]
        if not hurt:
            self.plan.insert(0, kind)  # it came too late
        for fault in hurt:
            self.note(fault)
        self.find_cut_objects()
        self.finish()
        self.find_cut_objects()

    def find_cut_objects(self) -> None:
        """Every object that has its name has to be whole."""
        run_folder = self.out / ".phrasebox"
        journals = [
            file for folder in found_in(run_folder, "journal-*") for file in found_in(folder, "*.parquet")
        ]
        contents = {path: path.read_bytes() for path in (*found_in(run_folder, "*.json"), *journals)}
        for path, content in {**self.objects(), **contents}.items():
            try:
                if path.suffix == ".parquet":
                    pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
                elif path.suffix == ".json":
                    json.loads(content)
            except (pa.ArrowException, OSError, ValueError) as error:
                self.judgement.blame("wrong rows", f"{path} is not whole: {error}")

    def objects(self) -> dict[AnyPath, bytes]:
        """Return the files of the dataset with their content; what a run leaves for itself is none of them."""
        paths = [path for folder in (self.out, self.out / "data") for path in found_in(folder, "*")]
        return {
            path: path.read_bytes() for path in paths if path.is_file() and not path.name.startswith(".")
        }


def _cut_upload(name: str, campaign: StoredCampaign) -> Iterator[Fault]:
    """A signal in the middle of an upload, of a new run or of one that goes on."""
    chance = campaign.chance
    if chance.random() < 0.5:
        assert campaign.start(options=["--limit", str(campaign.images // 2)]).wait().code == 0
    pattern = chance.choice(OBJECTS)
    number = chance.randrange(3) if "data" in pattern else 0
    signal_number, codes = SIGNALS[name]
    life = campaign.start(interrupt_upload(pattern, number, chance.uniform(0.05, 0.95), signal_number))
    outcome = life.wait()
    if outcome.code in codes:
        yield Fault(f"object {number} of {pattern}")
    elif outcome.code:
        campaign.judge(outcome)


def _sleep(campaign: StoredCampaign) -> Iterator[Fault]:
    """A run sleeps past its lease, another one takes over and finishes, and the sleeper wakes up."""
    first = campaign.start()
    campaign.wait(first)
    if first.is_over:
        first.wait()
        return
    first.send(signal.SIGSTOP)
    second = campaign.start().wait()
    fault = Fault("a run in storage", kind="sleeper in storage", cause=TAKEN_OVER)
    if second.code:
        campaign.judge(second)
    finished = campaign.objects()
    first.send(signal.SIGCONT)
    outcome = first.wait()
    if outcome.code:
        campaign.judge(outcome, fault)
        yield fault
    after = campaign.objects()
    if changed := [path for path in {**finished, **after} if finished.get(path) != after.get(path)]:
        campaign.judgement.blame(
            "wrong rows",
            f"a run that slept changed a dataset that life {campaign.judgement.lives} had finished: {changed}",
        )


HURTS: Final[dict[str, Callable[[StoredCampaign], Iterator[Fault]]]] = {
    "sleeper in storage": _sleep,
    **{f"upload cut by {name}": partial(_cut_upload, name) for name in SIGNALS},
}
"""Kind of fault -> what does it to a run."""


def fight_in_storage(
    folder: Path, faults: int, seed: int, images: int = 12, log: Callable[[str], None] = print
) -> Judgement:
    """Run a campaign in an empty folder, and in a bucket of a server of its own."""
    folder.mkdir(parents=True)
    with object_storage() as environment:
        keys = {name: value for name, value in environment.items() if name.startswith("AWS_")}
        os.environ.update(keys)
        return StoredCampaign(folder, images, random.Random(seed), log, environment=keys).run(faults)
