"""`phrasebox pool`: the concepts of a corpus of captions, and the share of other captions' phrases among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from pipeline.commands.options import Json, Settings, reading
from pipeline.config import load_config
from pipeline.terminal import console, print_json
from stages.contract.errors import ConfigError, InputError
from stages.contract.records import Phrase, Record, Sample
from stages.phrases.stage import PhrasesStage
from stages.read import make_reader
from stages.sources.naming import pool_lines, pool_of, read_pool

SAMPLES_AT_ONCE: Final = 256  # whose captions are parsed together


def pool(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Captions: whatever phrasebox run reads (no image is opened), or a text file with one caption a line.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the pool here: concept, count, head noun.")
    ] = None,
    at_least: Annotated[
        int, typer.Option("--at-least", metavar="N", min=1, help="Leave out what captions say less often.")
    ] = 1,
    covers: Annotated[
        Path | None,
        typer.Option("--covered-by", metavar="FILE", help="Report how many of the captions' phrases this pool has."),
    ] = None,
    as_json: Json = False,
    settings: Settings = [],  # noqa: B006  typer copies it
) -> None:
    """Write the phrases of captions as a pool of concepts, the most frequent first, or measure what a pool can name.

    \b
    phrasebox pool train.jsonl --out pool.txt --at-least 3
    phrasebox pool dev.jsonl --covered-by pool.txt     on captions that it was not parsed from
    """
    if (out is None) == (covers is None):
        raise ConfigError("say either --out FILE, to write a pool, or --covered-by FILE, to measure one")
    figures: dict[str, Any]
    if covers is not None:
        known = {concept.text for concept in read_pool(covers)}
        counts = Counter(phrase.text for phrase in _phrases(source, settings))
        if not counts:
            raise InputError(f"{source}: its captions have no phrases")
        named = {text: count for text, count in counts.items() if text in known}
        figures = {
            "concepts": len(known),
            "mentions": counts.total(),
            "mentions_named": sum(named.values()),
            "mentions_share": round(sum(named.values()) / counts.total(), 4),
            "texts": len(counts),
            "texts_named": len(named),
            "texts_share": round(len(named) / len(counts), 4),
        }
        report = (
            f"{figures['mentions_share']:.1%} of {counts.total():,} phrases, and {figures['texts_share']:.1%} of the "
            f"{len(counts):,} different ones, are among the {len(known):,} concepts of {covers}"
        )
    elif out is not None:
        concepts = pool_of(_phrases(source, settings), at_least=at_least)
        if not concepts:
            raise InputError(f"{source}: no phrase occurs in its captions {at_least} times or more")
        try:
            out.write_text(pool_lines(concepts), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out: {out} cannot be written: {error.strerror or error}") from error
        figures = {"concepts": len(concepts), "pool": str(out)}
        report = f"{len(concepts):,} concepts in {out}"
    if as_json:
        print_json(figures)
    else:
        console.print(report, soft_wrap=True)


def _phrases(source: str, settings: list[str]) -> Iterator[Phrase]:
    """Yield the phrases of all captions of an input; samples with an error have none."""
    if source.endswith(".txt"):
        config = load_config(None, settings, assigned={"input": {"kind": "jsonl", "path": source}})
        with reading(source):
            lines = [line for line in Path(source).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        samples: Iterator[Sample] = (
            Sample(sample_id=str(n), source="", captions=(text,)) for n, text in enumerate(lines)
        )
    else:
        config = load_config(None, settings, assigned={"input.path": source})
        reader = make_reader(config.input)
        samples = reader.samples(reader.shards())
    records = map(Record.start, samples)
    stage = PhrasesStage(config.phrases)
    stage.setup()
    while batch := list(islice(records, SAMPLES_AT_ONCE)):
        for record in stage.process(batch):
            if record.error is None:
                yield from record.phrases
