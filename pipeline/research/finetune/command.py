"""Fine-tune a CLIP on a dataset."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from phrasebox.pipeline.commands.options import AsJson, ConfigFile, Settings, naming_options, stopping
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.config.text import to_documented_yaml
from phrasebox.pipeline.dataset import open_dataset
from phrasebox.pipeline.research.finetune.config import RECIPES, FinetuneConfig
from phrasebox.pipeline.terminal import console, counted, errors, print_json, progress_bar, say
from phrasebox.stages.model.config import check_model_files

if TYPE_CHECKING:
    from phrasebox.pipeline.research.finetune.loop import TunedModel

IS_FIRST: Final = os.environ.get("RANK", "0") == "0"
"""Whether this process leads the group that torchrun has started, and so talks to people."""

DatasetFolder = Annotated[
    str, typer.Argument(metavar="DATASET", help="Folder or URL of a dataset (data.path).")
]
OutFolder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder to write: model/, log.jsonl (out).")
]
StartModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME[/TAG]|PATH",
        help="Model to begin with: demo, NAME/TAG of open_clip, or a checkpoint (model.name).",
    ),
]
RecipeKind = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="|".join(RECIPES),
        help="Regions against phrases (align, the default), captions alone, a baseline for them, or places against "
        "their own crops, without text (clipself) (recipe.kind).",
    ),
]
Epochs = Annotated[
    float | None,
    typer.Option("--epochs", metavar="N", help="How often every image is seen (epochs). [default: 1]"),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete the training in --out and begin anew.")]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="Print all keys with meaning and values as YAML and exit."),
]


@naming_options()
def finetune(
    dataset: DatasetFolder,
    out: OutFolder,
    model: StartModel = None,
    recipe: RecipeKind = None,
    epochs: Epochs = None,
    config: ConfigFile = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    fresh: Fresh = False,
    print_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a CLIP on a dataset. The same command resumes a training that was stopped.

    \b
    phrasebox finetune out/ --out tuned/ --model ViT-B-16/laion2b_s34b_b88k --epochs 2
    phrasebox score-model tuned/ --data captions.jsonl --images photos/ --truth Entities/ --compare before.json
    torchrun --nproc-per-node 8 -m phrasebox finetune out/ --out tuned/ --set model.precision=bf16
    """
    options = {
        "data.path": dataset,
        "out": str(out),
        "model.name": model,
        "recipe.kind": recipe,
        "epochs": epochs,
    }
    finetune_config = load_config(config, settings, model=FinetuneConfig, options=options)
    if print_config:
        sys.stdout.write(to_documented_yaml(finetune_config, {"recipe": RECIPES}))
        return
    open_dataset(finetune_config.data.path)
    check_model_files(finetune_config.model)
    result = _train(finetune_config, errors if as_json else console, fresh=fresh)
    if not IS_FIRST:
        return
    if as_json:
        print_json({**asdict(result), "model": str(result.model)})
    else:
        _print(result)


def _train(config: FinetuneConfig, progress: Console, *, fresh: bool) -> TunedModel:
    """Train with progress."""
    # It imports torch.
    from phrasebox.pipeline.research.finetune.loop import finetune as train  # noqa: PLC0415

    bars: list[Callable[[int], None]] = []
    message = "stopped. The same command resumes from the last checkpoint." if IS_FIRST else ""
    with stopping(message), ExitStack() as stack:

        def on_step(step: int, steps: int) -> None:
            if not bars:  # the number of steps is known when the first is taken
                bars.append(stack.enter_context(progress_bar(progress, "steps", steps)))
            bars[0](step)

        def on_note(text: str) -> None:
            progress.print(text, soft_wrap=True, highlight=False)

        return train(config, on_step, on_note, fresh=fresh)


def _print(result: TunedModel) -> None:
    losses = ", ".join(f"{name} {value:.3f}" for name, value in result.losses.items())
    effort = (
        f"{counted(result.steps, 'step')} on {counted(result.images, 'image')} in {result.seconds:,.0f} s"
    )
    console.print(f"{effort}: {losses}", highlight=False)
    if result.bad_images:
        console.print(f"{counted(result.bad_images, 'image')} could not be read: left out", style="yellow")
    if result.full_texts:
        console.print(
            f"{counted(result.full_texts, 'text')} filled the model's context: what is behind it was cut",
            style="yellow",
            soft_wrap=True,
        )
    say(console, f"the tuned model is in {result.model}: take it as --model {result.model.parent}")
