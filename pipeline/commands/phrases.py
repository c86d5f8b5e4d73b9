"""Print the phrases of captions as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from phrasebox.pipeline.commands.options import (
    ConfigFile,
    InputImages,
    input_or_config,
    naming_options,
    reading,
)
from phrasebox.pipeline.config.paths import check_writable
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.terminal import console, counted, print_json, say
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import Record, Sample, stable_key
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import replacing
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.parsers import CAPTIONS_PER_STEP
from phrasebox.stages.phrases.stage import PhrasesStage
from phrasebox.stages.read import READERS, ReaderConfig, make_reader, plan_pieces


@naming_options()
def phrases(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-|INPUT",
            help="Text file with one caption on each line, - is standard input; with --out captioned images or a "
            "configuration, as `phrasebox run` takes them.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write the phrases of all captions of INPUT to this file, which a run takes as input.phrases.",
        ),
    ] = None,
    images: InputImages = None,
    config: ConfigFile = None,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a key of the configuration's section phrases, e.g. --set max_phrases=5; with --out any key, e.g. "
            "--set phrases.keep_parts=true. Repeatable.",
        ),
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Print the phrases of captions as JSON lines.

    \b
    echo "A red car next to two dogs" | phrasebox phrases -
    phrasebox phrases captions.jsonl --images photos/ --out phrases.jsonl
    phrasebox run captions.jsonl --images photos/ --model photo --set input.phrases=phrases.jsonl
    """
    if out is not None:
        check_writable("--out", out)
        source, config = input_or_config(file, config)
        options = {"input.path": source, "input.image_root": images}
        run_config = load_config(config, settings, options=options)
        count = write_phrases(run_config.input, run_config.phrases, out)
        say(console, f"{out}: {counted(count, 'different caption')}")
        return
    phrases_config = load_config(config, settings, PhrasesConfig)
    suffixes = tuple(suffix for reader in READERS.load_all()[0].values() for suffix in reader.suffixes)
    if file.lower().endswith(suffixes):
        raise InputError(
            f"{file} is no text file with one caption on each line: write the phrases of its captions to a file "
            "with --out FILE"
        )
    with reading(file), sys.stdin.buffer if file == "-" else Path(file).open("rb") as content:
        lines = TextIOWrapper(content, encoding="utf-8-sig", newline="\n")
        for entry in phrases_json((line.rstrip("\r\n") for line in lines), phrases_config):
            print_json(entry, indent=None, ensure_ascii=False)


def write_phrases(source: ReaderConfig, config: PhrasesConfig, out: Path) -> int:
    """Write the phrases of an input's captions, as `phrasebox.stages.phrases.precomputed` reads them.

    Equal captions are written once.

    Return the number of captions. Raise InputError or ConfigError as a run does.
    """
    reader = make_reader(source)
    pieces = source.take_part(plan_pieces(reader))  # a missing file is reported before spaCy loads
    keys: set[int] = set()

    def captions() -> Iterator[str]:
        for sample in reader.samples(pieces):
            record = Record.start(sample)
            for caption in record.sample.captions if record.error is None else ():
                if (key := stable_key(caption)) not in keys:
                    keys.add(key)
                    yield caption

    unlimited = config.model_copy(
        update={"max_phrases": 1000, "languages": None}
    )  # a run has its own limits
    count = 0
    with replacing(out) as path, path.open("w", encoding="utf-8") as file:
        for entry in phrases_json(captions(), unlimited):
            if (
                "error" not in entry or not entry["caption"].strip()
            ):  # a longer one is parsed where it is no error
                file.write(f"{json.dumps(entry, ensure_ascii=False)}\n")
                count += 1
    return count


def phrases_json(captions: Iterable[str], config: PhrasesConfig) -> Iterator[Json]:
    """Yield the output of `phrasebox phrases`: one dict for each caption.

    `{"caption": ..., "phrases": [{"text", "start", "end", "head", "plural"}, ...]}`, with
    half-open character offsets into the caption. A caption that a run would reject has no phrases
    and the additional key "error"; one in another language has "language" and "warnings". With
    `phrases.language: auto` all have "language". Raise ConfigError if the spaCy pipeline cannot be
    used.
    """
    stage = PhrasesStage(config)
    stage.setup()
    captions = iter(captions)
    keys = ("text", "start", "end", "head", "plural")
    while batch := list(islice(captions, CAPTIONS_PER_STEP)):
        samples = [
            Sample(sample_id=str(number), source="", captions=(text,)) for number, text in enumerate(batch)
        ]
        records = stage.process([Record.start(sample) for sample in samples])
        for caption, record in zip(batch, records, strict=True):
            phrases = [{key: getattr(phrase, key) for key in keys} for phrase in record.phrases]
            error = {} if record.error is None else {"error": str(record.error)}
            has_language = bool(record.notes) or (config.is_mixed and record.error is None)
            language = {"language": stage.language(caption)} if has_language else {}
            warnings = {"warnings": list(record.notes)} if record.notes else {}
            yield {"caption": caption, "phrases": phrases, **language, **warnings, **error}
