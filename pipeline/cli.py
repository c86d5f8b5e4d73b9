"""The command line: parse, call, print, exit code. Heavy imports stand inside the verbs that need them."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline import __version__
from stages.errors import PhraseboxError, TooManyErrors

app = typer.Typer(
    name="phrasebox",
    help="Turn captioned images into region-text training data: phrases, boxes and masks, from CLIP alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Paths and captions may hold square brackets and colons: nothing in them is markup.
console = Console(markup=False, emoji=False)
errors = Console(stderr=True, markup=False, emoji=False)

Config = Annotated[Path | None, typer.Argument(help="YAML file; without it the defaults and --set hold.")]
Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. --set explain.blocks=1. Repeatable."),
]

Where = Annotated[
    str,
    typer.Option("--where", metavar="SQL", help="Only regions for which this holds, e.g. \"head = 'dog' AND w > h\"."),
]
MinScore = Annotated[
    float, typer.Option("--min-score", min=0.0, max=1.0, help="Only regions with at least this score.")
]
ImageRoot = Annotated[
    str | None,
    typer.Option("--image-root", metavar="DIR", help="Where the images are now, if the dataset does not hold them."),
]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit


@app.command()
def run(
    config: Config = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Delete the dataset that is in output.path and start over; asks before it deletes other files.",
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Answer yes to what --fresh asks. Without a terminal the answer is no.")
    ] = False,
    max_error_share: Annotated[
        str | None,
        typer.Option(
            "--max-error-share",
            metavar="SHARE",
            help="Exit code 1 if a larger share of the rows failed, e.g. 0.1; short for output.max_error_share.",
        ),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved configuration and exit.")
    ] = False,
) -> None:
    """Run the pipeline over captioned images; the same command again goes on where it stopped."""
    from pipeline.config import load_config

    if max_error_share is not None:
        settings = [*settings, f"output.max_error_share={max_error_share}"]
    resolved = load_config(config, settings)
    if print_config:
        sys.stdout.write(resolved.to_yaml())
        return
    from pipeline.run import run as run_pipeline
    from pipeline.stop import Terminated, stoppable
    from stages.write.places import AnyPath

    def may_delete(files: list[AnyPath]) -> bool:
        if yes or not sys.stdin.isatty():
            return yes
        console.print("phrasebox did not write these files:", *files, sep="\n  ", soft_wrap=True)
        return typer.confirm("Delete them too?")

    try:
        with stoppable():
            run_pipeline(resolved, console, fresh=fresh, may_delete=may_delete)
    except KeyboardInterrupt as stop:  # here, since typer makes an exit code of it and says nothing
        errors.print("stopped. What is finished is kept; the same command goes on from here.")
        raise typer.Exit(143 if isinstance(stop, Terminated) else 130) from None


@app.command()
def validate(dataset: Annotated[Path, typer.Argument(help="Folder or URL of a finished run.")]) -> None:
    """Check a dataset against its contract; exit code 1 and one line a problem if something is wrong."""
    from stages.write.places import place_of
    from stages.write.validate import validate as problems_of

    place = place_of(dataset)
    place = dataset if isinstance(place, Path) else place  # a local one as it was given
    problems = 0
    for problem in problems_of(place):
        sys.stdout.write(_visible(problem) + "\n")
        problems += 1
    if problems:
        errors.print(f"{problems} problems in {place}", soft_wrap=True)
        raise typer.Exit(1)
    console.print(f"{place}: valid", soft_wrap=True)


@app.command("eval")
def evaluate(
    dataset: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    truth: Annotated[
        Path,
        typer.Option(
            "--truth",
            help="COCO instances JSON, or a folder of Flickr30k Entities (Sentences/, Annotations/) or "
            "RefCOCO (instances.json, refs*.json).",
        ),
    ],
    maps: Annotated[
        bool, typer.Option("--maps/--no-maps", help="Compute the heat maps again, for the metrics that need them.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON and nothing else.")] = False,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Over the dataset's configuration, e.g. input.path=moved.jsonl."
        ),
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Measure a dataset against ground truth: pointing, boxes, masks, AP, scores; with 95 % intervals."""
    import json

    from pipeline.evaluate import evaluate as figures_of
    from pipeline.evaluate import print_evaluation

    figures = figures_of(dataset, truth, errors if as_json else console, settings, maps=maps)
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    else:
        print_evaluation(figures, console)


@app.command()
def calibrate(
    dataset: Annotated[Path, typer.Argument(help="Folder of a finished run over images with known truth.")],
    truth: Annotated[Path, typer.Option("--truth", help="As for eval.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.json", help="Where the calibration goes.")],
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Over the dataset's configuration.")
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Fit scores to how often regions are right; for the model and settings that the dataset was made with."""
    from pipeline.calibrate import calibrate as fit
    from pipeline.calibrate import print_calibration

    print_calibration(fit(dataset, truth, out, console, settings), out, console)


@app.command()
def inspect(
    dataset: Annotated[Path, typer.Argument(help="Folder of a run.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; only this machine by default.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any free one.")] = 8765,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="DIR", help="Write static pages there instead of serving.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Of --html: how many, drawn at random.  [default: 96]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Other seeds, other random samples.")] = 0,
    where: Where = "",
    min_score: MinScore = 0.0,
    image_root: ImageRoot = None,
) -> None:
    """Look at a dataset in the browser: pictures with regions, filters, figures, marks."""
    from stages.dataset.search import Search
    from stages.errors import ConfigError

    search = Search(where=where, score_min=min_score or None, seed=seed)
    if html is not None:
        from pipeline.viewer.gallery import write_gallery

        write_gallery(dataset, html, console, search, samples=96 if samples is None else samples, image_root=image_root)
        return
    if samples is not None:
        raise ConfigError("--samples: goes with --html; the server shows all")
    from pipeline.viewer.serve import inspect as serve

    serve(dataset, console, search, host=host, port=port, open_browser=open_browser, image_root=image_root)


@app.command()
def stats(
    dataset: Annotated[Path, typer.Argument(help="Folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON and nothing else.")] = False,
    where: Where = "",
    min_score: MinScore = 0.0,
    most: Annotated[int, typer.Option("--top", min=1, max=10_000, help="How many frequent phrases and heads.")] = 15,
) -> None:
    """Count a dataset: images, regions, scores, sizes, frequent phrases, errors."""
    import json

    from pipeline.statistics import print_statistics, statistics_of

    figures = statistics_of(dataset, errors, where=where, min_score=min_score, most=most)
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    else:
        print_statistics(figures, console)


@app.command()
def export(
    dataset: Annotated[Path | None, typer.Argument(help="Folder of a finished run.")] = None,
    name: Annotated[
        str, typer.Option("--format", metavar="NAME", help="What to write; --list tells the formats.")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write to, not there yet.")] = None,
    min_score: MinScore = 0.0,
    where: Where = "",
    split: Annotated[
        str,
        typer.Option("--split", metavar="NAME=SHARE,...", help="E.g. train=0.9,val=0.1; by a hash of the sample id."),
    ] = "",
    segmentation: Annotated[
        str | None,
        typer.Option("--segmentation", metavar="rle|polygons", help="Of coco: RLE is exact, polygons fill holes."),
    ] = None,
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the format, see --list. Repeatable."),
    ] = [],  # noqa: B006  typer copies it
    keep_empty: Annotated[
        bool,
        typer.Option("--keep-empty", help="Also images without a chosen region; they are not certified negatives."),
    ] = False,
    image_root: ImageRoot = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the export in --out; deletes only what an export wrote.")
    ] = False,
    list_formats: Annotated[bool, typer.Option("--list", help="Describe the formats and exit.")] = False,
) -> None:
    """Write a dataset in a format that trainers read: COCO, ODVG, MDETR, GRIT, Hugging Face, YOLO and others."""
    from stages.errors import ConfigError

    if list_formats:
        from pipeline.export import print_formats

        print_formats(console)
        return
    given = {"DATASET": dataset, "--format": name, "--out": out}
    missing = [option for option, value in given.items() if not value]
    if dataset is None or out is None or missing:
        raise ConfigError(f"export needs {', '.join(missing)}; --list tells the formats")
    from pipeline.export import export_dataset, print_report

    try:
        report = export_dataset(
            dataset,
            name,
            out,
            console,
            min_score=min_score,
            where=where,
            splits=split,
            settings=[*settings, *([f"segmentation={segmentation}"] if segmentation is not None else [])],
            keep_empty=keep_empty,
            image_root=image_root,
            overwrite=overwrite,
        )
    except KeyboardInterrupt:
        errors.print("stopped. Nothing was written.")
        raise typer.Exit(130) from None
    print_report(report, out, console)


@app.command()
def phrases(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="Text file with one caption a line; - is standard input.")
    ],
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the phrases section, e.g. --set max_phrases=5."),
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Print the phrases of captions as JSON lines."""
    import json

    from pipeline.config import load_config
    from stages.errors import InputError
    from stages.phrases.stage import Config as PhrasesConfig
    from stages.phrases.stage import phrases_json

    resolved = load_config(None, settings, PhrasesConfig)
    try:
        with sys.stdin.buffer if file == "-" else Path(file).open("rb") as content:
            lines = TextIOWrapper(content, encoding="utf-8-sig", newline="\n")
            for answer in phrases_json((line.rstrip("\r\n") for line in lines), resolved):
                sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8: {error}") from error


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    phrase: Annotated[list[str], typer.Option("--phrase", help="What to look for. Repeatable.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npz", help="Where maps, scores and phrases go.")],
    config: Annotated[Path | None, typer.Option("--config", help="YAML file with model and explain sections.")] = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    overlay: Annotated[
        Path | None, typer.Option("--overlay", metavar="FILE.png", help="Draw the maps over the image.")
    ] = None,
    versus: Annotated[
        list[str],
        typer.Option(
            "--versus", metavar="KEY=VALUE", help="Compute again with these settings and compare. Repeatable."
        ),
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Heat maps of phrases in one image, as arrays and as a picture."""
    from pipeline.explain import explain_image

    explain_image(image, phrase, out, config, settings, console, overlay=overlay, versus=versus)


@app.command()
def scenes(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    scenes: Annotated[int, typer.Option("--scenes", min=1, help="How many.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Other seeds, other scenes.")] = 0,
) -> None:
    """Draw scenes with captions and exact ground truth: images/, captions.jsonl, truth.json."""
    from stages.errors import ConfigError
    from stages.scenes import write_scenes

    try:
        write_scenes(out, scenes, seed)
    except OSError as error:
        raise ConfigError(f"--out: cannot write to {out}: {error.strerror}") from error
    console.print(f"{scenes} scenes in {out}: images/, captions.jsonl, truth.json", soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("out/demo"),
    scenes: Annotated[int, typer.Option("--scenes", min=1, help="How many scenes to draw.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Other seeds, other scenes.")] = 0,
) -> None:
    """The whole pipeline on drawn scenes with the embedded model; needs neither network nor GPU."""
    from pipeline.demo import run_demo

    run_demo(out, scenes, seed, console)


def main() -> None:
    """Entry point: known errors become one readable message and exit code 2; 1 where the work was done all the same."""
    try:
        app()
    except PhraseboxError as error:
        errors.print(f"error: {_visible(str(error))}", style="red", highlight=False, soft_wrap=True)
        sys.exit(1 if isinstance(error, TooManyErrors) else 2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _visible(text: str) -> str:
    """The text with control characters written out: names of files may hold what a terminal would obey."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
