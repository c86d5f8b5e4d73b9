"""`make soak`: runs are hurt again and again, at random by a seed; then their rows are compared with a quiet run's.

    python -m benchmarks.soak.soak --images 3000 --faults 500 --seed 1 --out out/soak

Most faults are those of many short runs on a disk (`benchmarks.soak.campaign`), some of runs into object storage
(`benchmarks.soak.stored`), and some of one long run on Ray, over `--images`.

On Ray they come at random moments while rows are written, each kind as often as the others: kill -9 of the driver,
of a model worker, a caption worker, a task that writes, the ledger, the raylet of a node (a spot machine that leaves,
and is replaced); SIGTERM and SIGINT to the driver. A driver that is gone is started again with the same command.

The log has one line a fault; the last line of each part is a summary as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.soak.campaign import fight
from benchmarks.soak.cluster import WORKERS, SmallCluster, workers
from benchmarks.soak.stored import fight_in_storage
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.demo.scenes import write_scenes
from tests.pipeline.light import is_alike, rows_of

DRIVER_FAULTS: Final = {"driver": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}

KINDS: Final = (*DRIVER_FAULTS, "node", *(kind for kind in WORKERS if kind != "read task"))
"""Read tasks are over in milliseconds: they die with nodes and drivers."""

EXIT_CODES: Final = {"driver": -9, "SIGTERM": 143, "SIGINT": 130}

PATIENCE_SECONDS: Final = 600  # without a new row for so long, the run hangs
RAY_SHARE: Final = 0.05
STORAGE_SHARE: Final = 0.08
"""Of the faults; all others are of runs on a disk."""

SEARCH_SECONDS: Final = 3  # how long a fault waits for a process of its kind: tasks that write come and go


def command(source: Path, out: Path, *settings: str) -> list[str]:
    """`phrasebox run` over drawn scenes with the embedded model."""
    keys = [
        "input.kind=jsonl",
        f"input.path={source / 'captions.jsonl'}",
        f"input.image_root={source / 'images'}",
        "input.piece_size=40",
        "model.name=demo",
        "model.threads=1",
        "engine.kind=ray",
        f"output.path={out}",
        "output.rows_per_file=16",
        *settings,
    ]
    # Children of a shell's background job are born with SIGINT ignored.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from phrasebox.pipeline.commands.cli import main; main()"
    )
    return [sys.executable, "-c", code, "run", *(part for key in keys for part in ("--set", key))]


@dataclass
class Soak:
    """A run and what is done to it; `faults` are the kinds still to come, the next one last."""

    cluster: SmallCluster
    wanted: list[str]
    out: Path
    faults: list[str]
    chance: random.Random
    log: Callable[[str], None]
    done: Counter[str] = field(default_factory=Counter)
    starts: int = 0

    def run(self) -> None:
        """Run to the end, through all faults. Raises AssertionError for a run that fails or hangs, or lacks a fault."""
        while True:
            self.starts += 1
            with (self.out.parent / f"driver-{self.starts:03d}.log").open("wb") as told:
                driver = subprocess.Popen(self.wanted, stdout=told, stderr=subprocess.STDOUT)
                expected = self._hurt(driver)
                code = driver.wait(timeout=PATIENCE_SECONDS)
            text = Path(told.name).read_text()
            assert code == expected, f"driver {self.starts} ended with {code}, not {expected}:\n{text}"
            assert "Traceback" not in text, text
            assert "(raylet)" not in text, text
            if expected in (130, 143):
                assert re.search(r"stopped\. [\d,]+ finished rows? in ", text), text
            if expected == 0:
                assert self.faults == [], (
                    f"never injected: {sorted(set(self.faults))}. No process has the name in `WORKERS`, or the run "
                    "ended first: then more images or fewer faults"
                )
                return

    def _hurt(self, driver: subprocess.Popen[bytes]) -> int:
        """Do faults until the driver is gone by one of them, or has ended; returns the exit code it should have."""
        while self.faults:
            if not self._more_rows(driver, self.chance.randint(1, 3)):
                return 0
            time.sleep(self.chance.uniform(0, 1))
            kind = self.faults.pop()
            if kind in DRIVER_FAULTS:
                driver.send_signal(DRIVER_FAULTS[kind])
                self._note(kind, driver.pid)
                return EXIT_CODES[kind]
            if not self._hurt_worker(kind):
                # Caption workers, say, are through long before the run is: after its next start there are some again.
                self.faults.insert(0, kind)
        self._more_rows(driver, sys.maxsize)
        return 0

    def _hurt_worker(self, kind: str) -> bool:
        """Kill a worker of a kind or a node; False if none is to be found."""
        if kind == "node":
            self._note(kind, self.cluster.replace_node(self.chance.randrange(len(self.cluster.nodes))))
            return True
        deadline = time.monotonic() + SEARCH_SECONDS
        while time.monotonic() < deadline:
            if victims := workers(kind):
                victim = self.chance.choice(victims)
                try:
                    victim.kill()
                except psutil.NoSuchProcess:
                    continue
                self._note(kind, victim.pid)
                return True
            time.sleep(0.01)
        return False

    def _more_rows(self, driver: subprocess.Popen[bytes], shards: int) -> bool:
        """Wait until so many shards were added; False if the driver ended before."""
        start = last = self._shards()
        patience = time.monotonic() + PATIENCE_SECONDS
        while driver.poll() is None:
            now = self._shards()
            if now - start >= shards:
                return True
            if now != last:
                last, patience = now, time.monotonic() + PATIENCE_SECONDS
            assert time.monotonic() < patience, (
                f"no new shard for {PATIENCE_SECONDS} s after {dict(self.done)}"
            )
            time.sleep(0.05)
        return False

    def _shards(self) -> int:
        return len(list((self.out / "data").glob("*.parquet")))

    def _note(self, kind: str, pid: int) -> None:
        self.done[kind] += 1
        self.log(f"{time.strftime('%H:%M:%S')} {kind} (process {pid}) with {self._shards()} shards written")


def schedule(faults: int, kinds: Sequence[str], chance: random.Random) -> list[str]:
    """Kinds in a random order, each as often as the others (by at most one)."""
    order = [kinds[number % len(kinds)] for number in range(faults)]
    chance.shuffle(order)
    return order


def soak(
    images: int,
    faults: int,
    seed: int,
    folder: Path,
    *,
    kinds: Sequence[str] = KINDS,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the soak in an empty folder. Raises AssertionError where a row is lost, doubled or different."""
    source, out, quiet = folder / "scenes", folder / "hurt", folder / "quiet"
    write_scenes(source, images, seed)
    start = time.monotonic()
    subprocess.run(command(source, quiet, "engine.kind=inline"), stdout=subprocess.DEVNULL, check=True)
    log(f"{images} images without faults, inline engine: {time.monotonic() - start:.0f} s")
    cluster = SmallCluster()
    start = time.monotonic()
    try:
        settings = [
            f"engine.address={cluster.address}",
            "engine.explain_workers=2",
            "engine.model_resources={model: 1}",
            "engine.kind=ray",
        ]
        chance = random.Random(seed)
        run = Soak(
            cluster, command(source, out, *settings), out, schedule(faults, kinds, chance), chance, log
        )
        run.run()
    finally:
        cluster.close()
    expected, rows = rows_of(quiet), rows_of(out)
    times = Counter(row["id"] for row in rows)
    counts = {
        "images": images,
        "faults": sum(run.done.values()),
        "faults_by_kind": dict(run.done),
        "driver_starts": run.starts,
        "lost": len({row["id"] for row in expected} - set(times)),
        "doubled": sum(count - 1 for count in times.values()),
        "equal_to_quiet_run": is_alike("", rows, expected),
        "problems_by_validate": list(validate(out)),
        "seconds": round(time.monotonic() - start),
    }
    log(json.dumps(counts))
    assert counts["lost"] == counts["doubled"] == 0
    assert counts["equal_to_quiet_run"]
    assert counts["problems_by_validate"] == []
    return counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=3000, help="of the run on Ray")
    parser.add_argument("--faults", type=int, default=500, help="of all three parts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/soak"))
    given = parser.parse_args()
    given.out.mkdir(parents=True)

    def log(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        with (given.out / "soak.log").open("a") as file:
            file.write(line + "\n")

    on_ray, in_storage = round(RAY_SHARE * given.faults), round(STORAGE_SHARE * given.faults)
    judgements = {
        "disk": fight(given.out / "disk", given.faults - on_ray - in_storage, given.seed, log=log),
        "storage": fight_in_storage(given.out / "storage", in_storage, given.seed, log=log),
    }
    for name, judgement in judgements.items():
        log(json.dumps({"campaign": name, **judgement.summary()}))
    soak(given.images, on_ray, given.seed, given.out / "ray", log=log)
    failures = [judgement.failures for judgement in judgements.values() if any(judgement.failures.values())]
    assert not failures, json.dumps(failures, indent=1)


if __name__ == "__main__":
    main()
