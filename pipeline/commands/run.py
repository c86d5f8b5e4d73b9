"""Make a dataset from captioned images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from phrasebox.pipeline.commands.options import (
    OPTIONS,
    ConfigFile,
    Docs,
    EngineKind,
    InputImages,
    ModelName,
    Settings,
    input_or_config,
    naming_options,
    stopping,
)
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.pipeline.output.previous_run import MayDelete, delete_what_runs_wrote
from phrasebox.pipeline.output.shards import count_readable_rows
from phrasebox.pipeline.run.run import run as run_pipeline
from phrasebox.pipeline.terminal import console, counted
from phrasebox.stages.files.storage import AnyPath

RunInput = Annotated[
    str | None,
    typer.Argument(
        metavar="INPUT|CONFIG.yaml",
        help="Captioned images: a file, folder, glob or URL, recognised by name and content (input.path); or a "
        "configuration in YAML.",
    ),
]
OutFolder = Annotated[
    str | None, typer.Option("--out", metavar="DIR", help="Folder or URL of the dataset (output.path).")
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", metavar="FILE", help="A local checkpoint of --model (model.weights)."),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", min=1, help="Only the first N samples of the input (input.limit)."
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="The I-th of N parts of the input, each a run of its own that `phrasebox merge` joins (input.part).",
    ),
]
AddMissing = Annotated[
    bool,
    typer.Option(
        "--add-missing",
        help="Keep the boxes of source.truth, and make regions from heat maps for the phrases that none answers. "
        "Sets source.kind to boxes (source.add_missing).",
    ),
]
MaxErrorShare = Annotated[
    str | None,
    typer.Option(
        "--max-error-share",
        metavar="SHARE",
        help="Exit with code 1 if a larger share of the rows failed, e.g. 0.1 for a tenth; no limit by default "
        "(output.max_error_share).",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Exit with code 1 if most captions do not seem to belong to their images, or are in another language "
        "(output.strict).",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Replace the dataset in --out, which is kept until the new run has written its first file. Asks at a "
        "terminal; elsewhere it keeps files that phrasebox did not write.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before --fresh deletes.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the configuration with all defaults as YAML and exit.")
]


def run(
    source: RunInput = None,
    images: InputImages = None,
    out: OutFolder = None,
    model: ModelName = None,
    weights: Weights = None,
    engine: EngineKind = None,
    limit: Limit = None,
    part: Part = None,
    add_missing: AddMissing = False,
    config: ConfigFile = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    max_error_share: MaxErrorShare = None,
    strict: Strict = False,
    fresh: Fresh = False,
    yes: Yes = False,
    print_config: PrintConfig = False,
    docs: Docs = False,
) -> None:
    """Make a dataset from captioned images. The same command resumes it.

    Options set the keys of the configuration in brackets and override the YAML file; INPUT and
    --model replace its sections `input` and `model`. --set overrides both.

    \b
    phrasebox run captions.jsonl --images photos/ --out out/ --model ViT-B-16/laion2b_s34b_b88k
    phrasebox run photos/ --model photo --limit 10    pairs of name.jpg and name.txt, or tars, or Parquet files
    phrasebox run my.yaml --set explain.blocks=1
    phrasebox run my.yaml --print-config --docs    all keys, their meaning and their values
    """
    source, config = input_or_config(source, config)
    options = {
        "input.path": source,
        "input.image_root": images,
        "input.limit": limit,
        "input.part": part,
        "output.path": out,
        "output.max_error_share": max_error_share,
        "output.strict": strict or None,
        "source.add_missing": add_missing or None,
        "model.name": model,
        "model.weights": weights,
        "engine.kind": engine,
    }
    # A user who wrote keys reads keys in messages, except where an option has set one.
    has_keys = config is not None or any(setting.startswith(tuple(OPTIONS)) for setting in settings)
    if add_missing:
        settings = ["source.kind=boxes", *settings]
    with naming_options(
        {key: OPTIONS[key] for key, value in options.items() if value is not None} if has_keys else OPTIONS
    ):
        run_config = load_config(config, settings, options=options)
        if print_config:
            sys.stdout.write(run_config.to_documented_yaml() if docs else run_config.to_yaml())
            return
        place = run_config.output.path
        with stopping(
            lambda: f"stopped. {_count_rows(place)} in {place}; the same command resumes the run."
        ):
            may_delete: MayDelete = ask_to_delete if sys.stdin.isatty() else delete_what_runs_wrote
            if yes:
                may_delete = delete_anything
            run_pipeline(run_config, console, fresh=fresh, may_delete=may_delete)


def delete_anything(_: str, __: list[AnyPath]) -> bool:
    """Answer `MayDelete` for --yes."""
    return True


def ask_to_delete(description: str, foreign: list[AnyPath]) -> bool:
    """Answer `MayDelete` by asking at the terminal."""
    if foreign:
        console.print("phrasebox did not write these files:", *foreign, sep="\n  ", soft_wrap=True)
    return typer.confirm(
        f"{description}. Delete {'it and these files' if foreign else 'it'} and start over?"
    )


def _count_rows(path: Path) -> str:
    folder = DatasetFolder(path)
    rows = count_readable_rows(folder.shards)
    images = 0 if rows else len(folder.kept_keys)  # they become the first rows
    return counted(rows, "finished row") + (f" and {counted(images, 'computed image')}" if images else "")
