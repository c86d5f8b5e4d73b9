"""`phrasebox phrases`: print the phrases of captions."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import reading
from pipeline.config import load_config
from pipeline.terminal import print_json
from stages.phrases.stage import PhrasesConfig, phrases_json


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
