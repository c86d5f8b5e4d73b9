"""Write the reference pages from the code: `python docs/generate.py FOLDER`.

Commands, keys of the configuration, columns, export formats, explainers, metrics and errors are listed as the code has
them, so a new one appears by itself. `make docs` runs this before it builds the site.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import typer
from pydantic import BaseModel

from phrasebox.pipeline.commands import cli
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.config.text import allowed_values
from phrasebox.pipeline.evaluate.metrics import METRICS
from phrasebox.pipeline.export import EXPORTERS
from phrasebox.pipeline.research.finetune.config import RECIPES, FinetuneConfig, RecipeConfig
from phrasebox.stages.contract import errors
from phrasebox.stages.contract.kinds import KindTable
from phrasebox.stages.contract.schema import DATASET_FIELDS, ENTRIES, HEAT_MAP_FIELDS, IMAGE_FIELD, Column
from phrasebox.stages.explain import EXPLAINERS
from phrasebox.stages.explain.base import Explainer
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.model.config import TOWER_WORDS
from phrasebox.stages.read import READERS, ReaderConfig
from phrasebox.stages.sources.source import SOURCES, RegionSourceConfig

KINDS: Final[dict[str, tuple[KindTable[Any], type[BaseModel]]]] = {
    "input": (READERS, ReaderConfig),
    "explain": (EXPLAINERS, ExplainerConfig),
    "source": (SOURCES, RegionSourceConfig),
    "recipe": (RECIPES, RecipeConfig),
}
"""Section with a kind -> its kinds, and the settings that all of them have."""


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    cells = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(escaped(cell) for cell in row) + " |" for row in cells) + "\n"


def escaped(text: str) -> str:
    """Return a text for a cell: on one line, and with bars that end no cell."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", r"\<")


def commands() -> str:
    """Return the page of all commands, with their help as the terminal prints it."""
    group: Any = typer.main.get_command(cli.app)
    parts = ["# Commands\n\nEvery command as `phrasebox COMMAND --help` prints it.\n"]
    context = typer.Context(group, info_name="phrasebox", terminal_width=100, max_content_width=100)
    for name in cli.VERBS:
        command = group.get_command(context, name)
        parts.append(help_of(command, name, context))
        parts += [
            help_of(inner, f"{name} {inner_name}", context)
            for inner_name, inner in getattr(command, "commands", {}).items()
        ]
    return "\n".join(parts)


def help_of(command: Any, name: str, parent: Any) -> str:
    """Return the help of a command below its name."""
    context = typer.Context(
        command, info_name=name, parent=parent, terminal_width=100, max_content_width=100
    )
    return f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"


def keys(config: type[BaseModel], without: type[BaseModel] | None = None) -> str:
    """Return a table of the keys of a section; without those that another one has in the same way."""
    known = {} if without is None else rows_of(without)
    rows = [(f"`{name}`", *row) for name, row in rows_of(config).items() if known.get(name) != row]
    return table(["key", "values", "default", "meaning"], rows)


def rows_of(config: type[BaseModel]) -> dict[str, tuple[str, str, str]]:
    """Return values, default and meaning of each key of a section."""
    values = allowed_values(config)
    return {
        name: (values[name], default_of(field), field.description or "")
        for name, field in config.model_fields.items()
        if name != "kind"
    }


def default_of(field: Any) -> str:
    """Return the default of a key, in the form of YAML."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value, default=str)}`"


CONFIGURATION: Final = """# Configuration

Every key of a run. Set one with `--set SECTION.KEY=VALUE` or in a YAML file. The file overrides the defaults, options
override the file, and `--set` overrides everything. `phrasebox run INPUT --print-config --docs` prints the keys of one
run.
"""


def configuration() -> str:
    """Return the page of all keys, of every kind."""
    parts = [CONFIGURATION]
    parts += section_parts(RunConfig, "")
    parts.append("## Fine-tuning\n\nThe keys of `phrasebox finetune`.\n")
    parts += section_parts(FinetuneConfig, "finetune: ")
    return "\n".join(parts)


def section_parts(config: type[BaseModel], prefix: str) -> list[str]:
    """Return the parts of a page about the sections of a configuration, and before them its plain keys."""
    parts, plain = [], {}
    for name, field in config.model_fields.items():
        title = f"## {prefix}{name}\n\n{field.description or ''}\n"
        if name in KINDS:
            parts += [title, kinds_of(name)]
        elif isinstance(section := field.annotation, type) and issubclass(section, BaseModel):
            parts += [title, keys(section)]
            for inner, inner_field in section.model_fields.items():
                below = inner_field.annotation
                if isinstance(below, type) and issubclass(below, BaseModel):
                    parts += [f"### {prefix}{name}.{inner}\n", keys(below)]
        else:
            plain[name] = field
    if plain:
        values = allowed_values(config)
        rows = [
            (f"`{name}`", values[name], default_of(field), field.description or "")
            for name, field in plain.items()
        ]
        parts.insert(0, table(["key", "values", "default", "meaning"], rows))
    return parts


def kinds_of(section: str) -> str:
    """Return the kinds of a section: the keys that all of them have, then those of each."""
    kinds, shared = KINDS[section]
    names = ", ".join(f"`{kind}`" for kind in kinds)
    default = f"`{kinds.default}`" if kinds.default else "by the path"
    parts = [f"`{section}.kind`: {names}. Default: {default}.\n"]
    if rows_of(shared):
        parts.append(f"Keys of every kind:\n\n{keys(shared)}")
    for kind in kinds:
        config = kinds.config_type(kind)
        own = keys(config, shared)
        text = own if own.count("\n") > 2 else "No further keys."  # more than its head
        parts.append(f"### {section}.kind={kind}\n\n{first_line(config)}\n\n{text}\n")
    return "\n".join(parts)


def first_line(documented: Any) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def dataset() -> str:
    """Return the page of the dataset's files and columns."""
    return f"""# The dataset

```text
out/
  data/*.parquet        one row per input sample
  categories.parquet    id, name (the phrase), supercategory (its head noun), count
  dataset.json          shards, counts, configuration, model fingerprint, versions, time per stage; written last
  README.md             dataset card
  croissant.json        the card for programs: Croissant with the responsible-AI fields
  presence.json         the fit of presence, if the run made one
  reviews.jsonl         answers and corrections of people, if there are any
```

Coordinates are pixels of the EXIF-rotated image, with the origin at the top left. The metadata of the shards
holds the same texts and units. Every input sample becomes one row. If it failed, `error` and `error_detail` say why,
where, and what to do.

`dataset.json` lists the shards under `shards`, one a line. The dataset consists of these files alone:

| key | |
|---|---|
| `name` | the file in `data/` |
| `rows` | the number of its rows |
| `size_bytes` | its size |
| `sha256` | the digest of the file |
| `footer_sha256` | the digest of its Parquet footer, which `phrasebox run` and all readers compare |

The metadata of each shard hold the key `phrasebox`. Its value is JSON: what `dataset.json` says of the run, without
counts and times. Its `schema_version` says which columns the shard has, and later versions
[read older ones](../how-to/upgrade.md#stored-files).

## Columns

{columns(DATASET_FIELDS)}

With `output.heat_maps`, which is on by default:

{columns(HEAT_MAP_FIELDS)}

With `output.embed_images`, which is off by default:

{columns([IMAGE_FIELD])}
""" + "\n".join(f"## Fields of {name}\n\n{columns(fields)}" for name, fields in ENTRIES.items())


def columns(fields: Iterable[Column]) -> str:
    """Return a table of columns."""
    rows = [(f"`{field.name}`", f"`{type_of(field.kind)}`", field.unit, field.doc) for field in fields]
    return table(["column", "type", "unit or range", "meaning"], rows)


def type_of(kind: Any) -> str:
    """Return an Arrow type; the fields of a struct in a list have a table of their own."""
    return re.sub(r"struct<.*>", "struct", str(kind))


def export_formats() -> str:
    """Return the page of the export formats."""
    parts = ["# Export formats\n\n`phrasebox export DATASET --format NAME --out FOLDER`\n"]
    for name in EXPORTERS:
        exporter = EXPORTERS[name]
        parts.append(f"## {name}\n\nWrites {exporter.summary}.\n\nMasks: {exporter.masks}.\n")
        if exporter.config_type.model_fields:
            parts.append(keys(exporter.config_type))
    return "\n".join(parts)


def explainers() -> str:
    """Return the page of the explainers."""
    classes: dict[str, type[Explainer[Any]]] = {kind: EXPLAINERS[kind] for kind in EXPLAINERS}
    rows = [
        (
            f"`{kind}`",
            first_line(explainer),
            paper_of(explainer),
            explainer.cost,
            towers_of(explainer),
            explainer.claim,
        )
        for kind, explainer in classes.items()
    ]
    return f"""# Explainers

`explain.kind` chooses one. [Configuration](configuration.md#explain) lists their keys, and
[the comparison](../benchmarks/explainers.md) measured them. Cost beside the image's forward pass: `forward` is next to
nothing, and `perturbation` is many forward passes per image, or as much time. `backward` is a gradient per phrase.
Grad-ECLIP has it nearly for nothing, others take a pass through several blocks.

{table(["kind", "what it computes", "paper", "cost", "towers", "licence note"], rows)}
"""


def paper_of(explainer: type[Explainer[Any]]) -> str:
    """Return a link to the paper that the docstring of an explainer, or of its module, names first."""
    texts = (inspect.getdoc(explainer) or "", inspect.getmodule(explainer).__doc__ or "")  # type: ignore[union-attr]
    number = next(
        (match[1] for text in texts if (match := re.search(r"arXiv\s+(\d{4}\.\d{4,5})", text))), None
    )
    return f"[arXiv {number}](https://arxiv.org/abs/{number})" if number else ""


def towers_of(explainer: type[Explainer[Any]]) -> str:
    """Return the kinds of towers that an explainer is defined on."""
    return "all" if set(explainer.towers) == set(TOWER_WORDS) else ", ".join(explainer.towers)


def faults() -> str:
    """Return the page of error reasons, exceptions and exit codes."""
    raised = [
        (f"`{name}`", first_line(value))
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.PhraseboxError)
    ]
    codes = [
        ("0", "everything was done"),
        ("1", "it ran and the answer is no: every row failed, more failed than `--max-error-share`, `--strict` doubts "
         "the captions, `validate` found a problem, or `models check` failed"),
        ("2", "it was refused: a wrong option, key, file, model or dataset. The message says what to do"),
        ("130, 143", "Ctrl-C or SIGTERM. Finished rows are kept"),
        ("141", "the reader of the output went away"),
    ]  # fmt: skip
    reasons = [(f"`{name}`", text) for name, text in errors.ROW_ERRORS.items()]
    return f"""# Errors and exit codes

## Exit codes

{table(["code", "meaning"], codes)}

## Errors of a row

Faults of the data are rows. The column `error` holds one of these reasons, and `error_detail` what is wrong, where, and
what to do:

{table(["error", "meaning"], reasons)}

## Exceptions

Faults of the program are exceptions. From Python, catch
`phrasebox.stages.contract.errors.PhraseboxError` or one of these:

{table(["exception", "meaning"], raised)}
"""


def metrics() -> str:
    """Return the page of metrics: those of `eval` from the code, behind them those of other commands."""
    rows = [
        (f"`{name}`", metric.doc, "needs heat maps" if metric.needs_maps else "")
        for name, metric in METRICS.items()
    ]
    text = (Path(__file__).parent / "_metrics.md").read_text("utf-8")
    return text.replace("<!-- metrics of eval -->\n", table(["metric", "definition", ""], rows))


PAGES: Final[dict[str, Callable[[], str]]] = {
    "commands": commands,
    "configuration": configuration,
    "dataset": dataset,
    "export-formats": export_formats,
    "explainers": explainers,
    "metrics": metrics,
    "errors": faults,
}
"""Name of a page -> function that returns its text."""


def main(folder: Path) -> None:
    """Write all pages into a folder."""
    for name, page in PAGES.items():
        (folder / f"{name}.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
