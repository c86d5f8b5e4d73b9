"""Many short runs on a disk, each hurt while it runs and damaged while it rests, and judged after every life.

An episode begins with no dataset. Its run is killed, stopped, starved of disk, met by a second run, or has its input
changed; then the files are damaged; the same command is run until it is done; then the finished dataset is damaged,
read, validated, and made whole again by the same command. `Judgement` counts what must never happen.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.soak.damage import DAMAGES, MANIFEST, Fault, damage
from benchmarks.soak.judgement import Judgement, Row
from benchmarks.soak.lives import Life, Outcome, Prepare, fill_disk
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.stages.contract.errors import PhraseboxError
from phrasebox.stages.files.storage import AnyPath, remove_tree

SPARE: Final = 8  # samples of the source that only an input that changes has
MOST_LIVES: Final = 5  # after which a run that is still refused is refused for ever

JOURNAL_KINDS: Final = ("zeroed journal", "lost journal file", "lost .phrasebox")
"""Damage that a finished dataset cannot have: it has no journal."""

SIGNALS: Final = {
    "kill": (signal.SIGKILL, (-9,)),
    "SIGTERM": (signal.SIGTERM, (143, -15)),  # the second before the command has begun
    "SIGINT": (signal.SIGINT, (130,)),
}

CHANGED: Final = (
    r"has changed while it was read|the input is not what it was|samples that have rows, but are gone"
)
BUSY: Final = r"another run is writing to"
FULL: Final = r"cannot write to|File too large|No space left"


@dataclass
class Campaign:
    """Episodes on one input. `plan` holds the kinds of faults to come."""

    folder: Path
    images: int
    chance: random.Random
    log: Callable[[str], None]
    plan: list[str] = field(default_factory=list)
    run_seconds: float = 0.0
    lines: list[str] = field(default_factory=list)
    quiet: dict[str, Row] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    samples: dict[str, None] = field(default_factory=dict)  # lines that the input has had
    pending: list[Fault] = field(default_factory=list)  # what was done since the dataset was whole

    def __post_init__(self) -> None:
        self.judgement = Judgement(self.log)

    def run(self, faults: int) -> Judgement:
        """Inject so many faults, each kind as often as the others by at most one."""
        self._prepare()
        kinds = self.kinds
        self.plan = [kinds[number % len(kinds)] for number in range(faults)]
        self.chance.shuffle(self.plan)
        while self.plan:
            self._live_through_episode()
        return self.judgement

    @property
    def source(self) -> Path:
        """The caption file."""
        return self.folder / "scenes" / "captions.jsonl"

    @property
    def out(self) -> AnyPath:
        """The dataset that is hurt."""
        return self.folder / "out"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of faults of this campaign."""
        return (*RUNNING, *DAMAGES)

    def arguments(self, out: AnyPath | None = None) -> list[str]:
        """Return the arguments of the command that is run again and again."""
        settings = [
            "input.kind=jsonl",
            f"input.path={self.source}",
            f"input.image_root={self.source.parent / 'images'}",
            "input.piece_size=8",
            "model.name=demo",
            "model.threads=1",
            "regions.absent_share=0.05",  # by itself it would depend on the first images, which change
            "engine.kind=inline",
            f"output.path={out or self.out}",
            "output.rows_per_file=4",
        ]
        return ["run", *(part for key in settings for part in ("--set", key))]

    def start(self, *prepare: Prepare, options: Sequence[str] = ()) -> Life:
        """Start the command in a process of its own."""
        self.judgement.lives += 1
        log = self.folder / f"life-{self.judgement.lives:05d}.log"
        return Life.start([*self.arguments(), *options], log, prepare, self.environment)

    def note(self, fault: Fault) -> None:
        """Count a fault that was injected."""
        self.pending.append(fault)
        self.judgement.injected[fault.kind] += 1
        self.log(f"{time.strftime('%H:%M:%S')} {fault.kind}: {fault.place} (life {self.judgement.lives})")

    @property
    def input_lines(self) -> list[str]:
        """The lines of the caption file as it is."""
        return self.source.read_text().splitlines(keepends=True)

    @property
    def spare_line(self) -> str:
        """A sample that the input has not had in this episode."""
        return self.chance.choice([line for line in self.lines if line not in self.samples])

    def restore_input(self) -> None:
        """Put every sample back that the input has had in this episode."""
        self.write_input([*self.samples])

    def write_input(self, lines: Sequence[str], *, in_place: bool = False) -> None:
        """Replace the caption file, or its content."""
        self.samples |= dict.fromkeys(lines)
        text = "".join(lines)
        if in_place:
            self.source.write_text(text)
            return
        temporary = self.source.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(self.source)

    def wait(self, life: Life) -> None:
        """Let some of a run's time pass. The machine's speed changes, so about one life in five ends before."""
        life.process.join(self.chance.uniform(0, 0.9 * self.run_seconds))
        self.run_seconds *= 0.8 if life.is_over else 1.05

    def _prepare(self) -> None:
        """Draw the scenes, and make all rows without faults."""
        write_scenes(self.source.parent, self.images + SPARE, seed=self.chance.randrange(1000))
        self.lines = self.source.read_text().splitlines(keepends=True)
        out = self.folder / "quiet"
        assert Life.start(self.arguments(out), self.folder / "quiet.log").wait().code == 0
        self.quiet = {row["sample_id"]: row for row in open_dataset(out).rows()}
        start = time.monotonic()
        remove_tree(out)
        assert Life.start(self.arguments(out), self.folder / "quiet.log").wait().code == 0
        self.run_seconds = time.monotonic() - start
        self.log(f"{len(self.lines)} images without faults: {self.run_seconds:.1f} s")

    def _live_through_episode(self) -> None:
        remove_tree(self.out)
        self.samples.clear()
        self.write_input(self.lines[: self.images])
        for _ in range(self.chance.randint(1, 3)):
            if self._is_finished():
                break
            planned = self._take(RUNNING)
            kind = planned or "kill"  # what is left of the plan may need a run that has not finished
            hurt = [replace(fault, kind=kind) for fault in RUNNING[kind](self)]
            for fault in hurt:
                self.note(fault)
            if planned and not hurt:
                self.plan.insert(0, planned)  # it came too late
        if not self._is_finished():
            self._damage(tuple(DAMAGES), self.chance.randint(0, 2))
        self.finish()
        for _ in range(self.chance.randint(1, 3)):
            kinds = tuple(kind for kind in DAMAGES if kind not in JOURNAL_KINDS)
            self._damage(kinds, self.chance.choice((1, 1, 2)))
            if self.pending:
                self.finish(self._read("after damage"), are_named=True)

    def _is_finished(self) -> bool:
        return (self.out / "dataset.json").exists()

    def _take(self, kinds: Iterable[str]) -> str | None:
        """Take the next kind of the plan that is one of these."""
        for number in reversed(range(len(self.plan))):
            if self.plan[number] in kinds:
                return self.plan.pop(number)
        return None

    def _damage(self, kinds: Sequence[str], number: int) -> None:
        """Do the next damages of the plan to the dataset at rest."""
        for _ in range(number):
            kind = self._take(kinds)
            if kind is None:
                break
            fault = damage(kind, Path(str(self.out)), self.chance)
            if fault is None:
                self.plan.insert(0, kind)
                continue
            self.note(fault)

    def _read(self, when: str) -> str:
        """Read all rows as users do: what is read without an error has to be right. Return the error."""
        try:
            rows = list(open_dataset(self.out).rows())
        except PhraseboxError as error:
            return str(error)
        self.judgement.compare(rows, self._wanted(), when)
        return ""

    def _wanted(self) -> dict[str, Row]:
        names = [json.loads(line)["id"] for line in self.source.read_text().splitlines()]
        return {name: self.quiet[name] for name in names}

    def finish(self, words: str = "", *, are_named: bool = False) -> None:
        """Run the same command until it is done; then the dataset has to be whole.

        words: What people have read of the faults so far. are_named: Whether the dataset was finished, so that each has
            to be named.
        """
        kinds = ", ".join(fault.kind for fault in self.pending) or "no fault"
        words += self._run_to_end()
        problems = list(validate(self.out))
        if problems:  # a finished dataset is read whole by a validation alone
            words += "\n".join(problems)
            for fault in self.pending:
                fault.remedy()
            words += self._run_to_end()
            problems = list(validate(self.out))
        if problems:
            self.judgement.blame("stuck", f"after {kinds}: {problems[:3]}")
        # Digests go with the list of shards: without them rows alone decide.
        has_list = not any(fault.place == MANIFEST for fault in self.pending)
        for fault in self.pending if are_named else ():
            is_due = fault.words and (has_list or fault.place == MANIFEST)
            if is_due and not re.search(fault.words, words):
                self.judgement.blame("silent", f"{fault.kind} of {fault.place}: {words!r}")
        if error := self._read(f"after {kinds}"):
            self.judgement.blame("stuck", f"after {kinds}: {error}")
        self.pending.clear()

    def _run_to_end(self) -> str:
        """Run the same command, and do what its messages ask for, until it is done; return what it printed."""
        words, options = "", list[str]()
        for _ in range(MOST_LIVES):
            outcome = self.start(options=options).wait()
            words += outcome.text
            if outcome.code == 0:
                return words
            options = [option for fault in self.judge(outcome) for option in fault.options]
        self.judgement.blame("stuck", f"after {[fault.kind for fault in self.pending]}: {words[-2000:]}")
        remove_tree(self.out)
        self.start().wait()
        return words

    def judge(self, outcome: Outcome, *faults: Fault) -> list[Fault]:
        """Judge a life that did not end well; do what its message asks for, and return the faults that it names.

        faults: Those that are done to this life, beside those before it.
        """
        life = f"life {self.judgement.lives}"
        if outcome.code != 2 or "Traceback" in outcome.text:
            self.judgement.blame("crash", f"{life}: code {outcome.code}: {outcome.text[-2000:]}")
            return []
        text = outcome.refusal
        candidates = [*self.pending, *faults]
        named = [fault for fault in candidates if fault.cause and re.search(fault.cause, text, re.DOTALL)]
        if not named:
            self.judgement.blame(
                "wrong cause", f"{life} after {[fault.kind for fault in candidates]}: {text}"
            )
        self.judgement.refusals.update({fault.kind for fault in named})
        for fault in named:
            fault.remedy()
        return named


Hurt = Callable[[Campaign], Iterator[Fault]]
"""Starts the run of a campaign and hurts it; yields the fault, or nothing if it came too late."""


def _send(name: str, campaign: Campaign) -> Iterator[Fault]:
    number, codes = SIGNALS[name]
    life = campaign.start()
    campaign.wait(life)
    life.send(number)
    outcome = life.wait()
    if outcome.code in codes:
        yield Fault(f"process {life.process.pid}")
    elif outcome.code:
        campaign.judge(outcome)


def _fill_disk(campaign: Campaign) -> Iterator[Fault]:
    size = campaign.chance.randint(1_000, 60_000)
    fault = Fault(f"no file grows beyond {size} bytes", kind="full disk", cause=FULL)
    outcome = campaign.start(fill_disk(size)).wait()
    if outcome.code:
        campaign.judge(outcome, fault)
        yield fault


def _meet(campaign: Campaign, *, is_asleep: bool) -> Iterator[Fault]:
    """A second run finds the first one, which may be asleep, and leaves it alone."""
    first = campaign.start()
    campaign.wait(first)
    if is_asleep:
        first.send(signal.SIGSTOP)
    second = campaign.start().wait()
    first.send(signal.SIGCONT)
    fault = Fault("a second run", kind="sleeping run" if is_asleep else "second run", cause=BUSY)
    outcomes = [outcome for outcome in (second, first.wait()) if outcome.code]
    for outcome in outcomes:
        campaign.judge(outcome, fault)
    if outcomes:
        yield fault


def _change_input(campaign: Campaign, change: Callable[[Campaign], object], kind: str) -> Iterator[Fault]:
    life = campaign.start()
    campaign.wait(life)
    if life.is_over:
        if (outcome := life.wait()).code:
            campaign.judge(outcome)
        return
    change(campaign)
    fault = Fault(campaign.source.name, kind=kind, cause=CHANGED, remedy=campaign.restore_input)
    outcome = life.wait()
    if outcome.code:
        campaign.judge(outcome, replace(fault, remedy=lambda: None))
    yield fault


def _append(campaign: Campaign) -> None:
    line = campaign.spare_line
    campaign.samples[line] = None
    with campaign.source.open("a") as file:
        file.write(line)


def _shorten(campaign: Campaign) -> None:
    campaign.write_input(campaign.input_lines[: -campaign.chance.randint(1, 6)], in_place=True)


def _put_before(campaign: Campaign) -> None:
    campaign.write_input([campaign.spare_line, *campaign.input_lines])


RUNNING: Final[dict[str, Hurt]] = {
    **{name: partial(_send, name) for name in SIGNALS},
    "full disk": _fill_disk,
    "second run": partial(_meet, is_asleep=False),
    "sleeping run": partial(_meet, is_asleep=True),
    "input appended": partial(_change_input, change=_append, kind="input appended"),
    "input shortened": partial(_change_input, change=_shorten, kind="input shortened"),
    "input replaced": partial(_change_input, change=_put_before, kind="input replaced"),
}
"""Kind of fault -> what does it to a run."""


def fight(
    folder: Path, faults: int, seed: int, images: int = 28, log: Callable[[str], None] = print
) -> Judgement:
    """Run a campaign in an empty folder."""
    folder.mkdir(parents=True)
    return Campaign(folder, images, random.Random(seed), log).run(faults)
