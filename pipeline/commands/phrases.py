"""`phrasebox phrases`: print the phrases of captions."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import reading
from pipeline.config import load_config
from pipeline.terminal import print_json
from stages.contract.records import Record, Sample
from stages.phrases.stage import PhrasesConfig, PhrasesStage


def phrases(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="Text file with one caption on each line; - is standard input.")
    ],
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a key of the configuration's section phrases, e.g. --set max_phrases=5. Repeatable.",
        ),
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Print the phrases of captions as JSON lines.

    \b
    echo "A red car next to two dogs" | phrasebox phrases -
    """
    config = load_config(None, settings, PhrasesConfig)
    with reading(file), sys.stdin.buffer if file == "-" else Path(file).open("rb") as content:
        lines = TextIOWrapper(content, encoding="utf-8-sig", newline="\n")
        for answer in phrases_json((line.rstrip("\r\n") for line in lines), config):
            print_json(answer, indent=None, ensure_ascii=False)


def phrases_json(captions: Iterable[str], config: PhrasesConfig) -> Iterator[dict[str, Any]]:
    """Yield the output of `phrasebox phrases`, one dict for each caption, reading `config.batch_size` at a time.

    `{"caption": ..., "phrases": [{"text", "start", "end", "head"}, ...]}`, with half-open character offsets into the
    caption. A caption that a run would reject has no phrases and the additional key "error"; one in another language
    has "warnings". Raise ConfigError if the spaCy pipeline cannot be used.
    """
    stage = PhrasesStage(config)
    stage.setup()
    rest = iter(captions)
    while batch := list(islice(rest, config.batch_size)):
        samples = [Sample(sample_id=str(number), source="", captions=(text,)) for number, text in enumerate(batch)]
        records = stage.process([Record.start(sample) for sample in samples])
        for caption, record in zip(batch, records, strict=True):
            phrases = [{key: getattr(each, key) for key in ("text", "start", "end", "head")} for each in record.phrases]
            error = {} if record.error is None else {"error": str(record.error)}
            warnings = {"warnings": list(record.notes)} if record.notes else {}
            yield {"caption": caption, "phrases": phrases, **warnings, **error}
