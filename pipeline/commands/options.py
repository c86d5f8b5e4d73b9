"""Arguments and options that several verbs of the command line take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from phrasebox.pipeline.terminal import Terminated, errors, say, stoppable
from phrasebox.stages.contract.errors import ConfigError, InputError, PhraseboxError

Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the configuration, e.g. --set model.device=cpu. Repeatable.",
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME[/TAG]|PATH",
        help="open_clip's model and its tag of pretrained weights, e.g. ViT-B-16/laion2b_s34b_b88k; demo, for "
        "synthetic scenes, or photo, for photographs, in a checkout of the repository (model.name); or "
        "the folder or file of a checkpoint (model.checkpoint). `phrasebox models` lists all.",
    ),
]
InputImages = Annotated[
    str | None,
    typer.Option(
        "--images",
        metavar="DIR",
        help="Folder or URL that the input's image paths start from (input.image_root).",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.yaml", help="Configuration in YAML; options override it."),
]
EngineKind = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="auto|ray|inline",
        help="Run on Ray, or inline in one process; auto, the default, chooses by the number of samples (engine.kind).",
    ),
]

Where = Annotated[
    str,
    typer.Option(
        "--where",
        metavar="SQL",
        help="Only regions for which this holds, e.g. \"head = 'dog' AND w > 100\". Columns: phrase, head, score, "
        "similarity, presence, x, y, w, h and area in pixels, bbox_of, area_share, box_share, caption, "
        "caption_index, sample_id, file_name, width, height, phrase_count, region_count, mark.",
    ),
]
MinScore = Annotated[
    float,
    typer.Option(
        "--min-score",
        metavar="SCORE",
        min=0.0,
        max=1.0,
        help="Only regions with at least this score, 0 to 1. At most one of --min-score, --precision and --keep.",
    ),
]
Precision = Annotated[
    float | None,
    typer.Option(
        "--precision",
        metavar="SHARE",
        min=0.0,
        max=1.0,
        help="Take the lowest score at which this share of the regions is right, by the mean of their scores, e.g. "
        "0.7. Requires scores of a calibration.",
    ),
]
Keep = Annotated[
    float | None,
    typer.Option(
        "--keep", metavar="SHARE", min=0.0, max=1.0, help="Take the best regions, this share of all."
    ),
]
MaxArea = Annotated[
    float,
    typer.Option(
        "--max-area",
        metavar="SHARE",
        min=0.0,
        max=1.0,
        help="Only regions whose box covers at most this share of the image: large boxes are the easy ones.",
    ),
]
CHOICE_OPTIONS: Final = "--where, --min-score, --precision, --keep and --max-area"
"""The options that choose regions, for messages."""

FinishedDataset = Annotated[
    Path, typer.Argument(metavar="DATASET", help="Folder or URL of a finished dataset.")
]
AnyDataset = Annotated[
    Path, typer.Argument(metavar="DATASET", help="Folder or URL of a dataset, finished or not.")
]
Truth = Annotated[
    Path,
    typer.Option(
        "--truth",
        metavar="FILE|DIR",
        help="Where objects are in the images: COCO instances JSON, tasks of Label Studio as JSON, or a folder of "
        "Flickr30k Entities (Sentences/, Annotations/); "
        "also in a .zip or .tar.gz.",
    ),
]
OptionalTruth = Annotated[
    Path | None,
    typer.Option(
        "--truth",
        metavar="FILE|DIR",
        help="Ground truth: where objects are in the images, as `phrasebox eval` takes it.",
    ),
]
Resized = Annotated[
    bool,
    typer.Option(
        "--resized",
        help="The images were resized after the ground truth was drawn, without a crop or a border: scale it to them.",
    ),
]
ImageRoot = Annotated[
    str | None,
    typer.Option(
        "--images",
        metavar="DIR",
        help="Folder or URL of the images, if they have moved since the run.",
    ),
]
DatasetSettings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the dataset's configuration, e.g. --set input.image_root=moved/. Repeatable.",
    ),
]
Scenes = Annotated[int, typer.Option("--scenes", metavar="N", min=1, help="How many to draw.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Another seed draws another sample.")]
Docs = Annotated[
    bool,
    typer.Option("--docs", help="With --print-config: print meaning and values of every key above it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]

OPTIONS: Final = {
    "input.path": "INPUT",
    "input.image_root": "--images",
    "output.path": "--out",
    "output.max_error_share": "--max-error-share",
    "output.strict": "--strict",
    "input.limit": "--limit",
    "input.part": "--part",
    "source.add_missing": "--add-missing",
    "model.name": "--model",
    "model.checkpoint": "--model",
    "model.weights": "--weights",
    "engine.kind": "--engine",
    "image_root": "--images",
    "out": "--out",
    "split": "--split",
    "where": "--where",
    "min_score": "--min-score",
    "precision": "--precision",
    "keep": "--keep",
    "max_area": "--max-area",
    "min_count": "--min-count",
    "per": "--per",
    "keep_empty": "--keep-empty",
}
"""Key of the configuration, or parameter -> the argument or option that sets nothing else."""


MODEL_ARGUMENT: Final = dict.fromkeys(("model", "model.name", "model.checkpoint", "model.config"), "MODEL")
"""Keys of the model, for verbs whose argument it is."""

OF_DATASETS: Final = {"out": "--out"}
"""The same for verbs that take a dataset, whose input no argument names."""


@contextmanager
def naming_options(options: Mapping[str, str] = OPTIONS) -> Iterator[None]:
    """Translate the keys of errors in the block, or in the verb that it decorates, to command-line options."""
    try:
        yield
    except PhraseboxError as error:
        for problem in (error, *error.more):
            problem.key = options.get(problem.key, problem.key)
        raise


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Raise InputError where a text file in the block cannot be read."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {file or 'a file without a name'}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8: {error}") from error


@contextmanager
def stopping(message: str | Callable[[], str]) -> Iterator[None]:
    """Print the message and end with its exit code if a signal arrives in the block."""
    try:
        with stoppable():
            yield
    except KeyboardInterrupt as stop:  # here, since typer makes an exit code of it and says nothing
        if message:
            say(errors, message if isinstance(message, str) else message())
        raise typer.Exit(143 if isinstance(stop, Terminated) else 130) from None


def input_or_config(source: str | None, config: Path | None) -> tuple[str | None, Path | None]:
    """Return the input and the configuration; the argument may be either of the two.

    Raise ConfigError if there are two configurations.
    """
    if source is None or Path(source).suffix not in (".yaml", ".yml"):
        return source, config
    if config is not None:
        raise ConfigError(f"{source} is a configuration already; give one of the two", key="--config")
    return None, Path(source)
