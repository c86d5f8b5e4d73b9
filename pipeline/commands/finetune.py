"""`phrasebox finetune`: teach a CLIP what the regions of a dataset show."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import Json, Where, naming_options
from pipeline.finetune import RECIPES
from pipeline.terminal import console, errors, progress_bar

if TYPE_CHECKING:
    from pipeline.finetune.loop import Tuned


def finetune(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Folder or URL of a dataset (data.path).")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write: model/, log.jsonl (out).")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME[/TAG]|PATH",
            help="Model to begin with: demo, NAME/TAG of open_clip, or a checkpoint (model.name).",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="FILE", help="Weights for a --model without a tag (model.weights)."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="|".join(RECIPES),
            help="What the model is taught: regions against phrases (align, the default), or what regions have to "
            "beat: crops, mosaics of whole images, captions alone (recipe.kind).",
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", metavar="N", help="How often every image is seen (epochs; 1).")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Images of a step (batch_size; 32).")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", metavar="RATE", help="The highest (learning_rate; 1e-5).")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", metavar="SCORE", help="Only regions of this score (data.min_score).")
    ] = None,
    where: Where = "",
    images: Annotated[
        str | None,
        typer.Option("--images", metavar="DIR", help="Folder or URL of the images, if they moved (data.image_root)."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of order and draws (seed; 0).")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE.yaml", help="Settings in YAML; options override it.")
    ] = None,
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key, e.g. --set recipe.region_weight=0.1. Repeatable."),
    ] = [],  # noqa: B006  typer copies it
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the training in --out and begin anew.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all keys with their values as YAML and exit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a CLIP on a dataset. The same command goes on where it stopped.

    \b
    phrasebox finetune out/ --out tuned/ --model ViT-B-16/laion2b_s34b_b88k --epochs 2
    phrasebox run captions.jsonl --images photos/ --model tuned/ --out out-tuned/
    torchrun --nproc-per-node 8 -m pipeline finetune out/ --out tuned/ --set model.precision=bf16
    """
    from pipeline.config import as_yaml, load_config
    from pipeline.finetune.config import FinetuneConfig

    given = {
        "data.path": dataset,
        "data.image_root": images,
        "data.min_score": min_score,
        "data.where": where or None,
        "out": str(out),
        "model.name": model,
        "model.weights": weights,
        "recipe.kind": recipe,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    resolved = load_config(config, settings, model=FinetuneConfig, assigned=given)
    if print_config:
        sys.stdout.write(as_yaml(resolved.model_dump(mode="json")))
        return
    if fresh:
        from pipeline.finetune.files import TuningFolder

        TuningFolder(resolved.out).clear()
    tuned = _finetune(resolved, errors if as_json else console)
    if tuned is None:
        return
    if as_json:
        sys.stdout.write(json.dumps({**asdict(tuned), "model": str(tuned.model)}, indent=1) + "\n")
        return
    _print(tuned)


def _finetune(config: Any, speaks: Any) -> Tuned | None:
    """The training; None on a rank that does not lead. Raises typer.Exit where a person stops it."""
    from pipeline.finetune.loop import finetune as train
    from pipeline.terminal import Terminated, stoppable

    leads = os.environ.get("RANK", "0") == "0"
    try:
        with naming_options(), stoppable(), ExitStack() as stack:
            bars: list[Callable[[int], None]] = []

            def on_step(step: int, steps: int) -> None:
                if not bars:  # how many steps there are is known when the first is taken
                    bars.append(stack.enter_context(progress_bar(speaks, "steps", steps)))
                bars[0](step)

            tuned = train(config, on_step, lambda text: speaks.print(text, soft_wrap=True, highlight=False))
    except KeyboardInterrupt as stop:
        if leads:
            errors.print("stopped. The same command goes on from the last checkpoint.")
        raise typer.Exit(143 if isinstance(stop, Terminated) else 130) from None
    return tuned if leads else None


def _print(tuned: Tuned) -> None:
    losses = ", ".join(f"{name} {value:.3f}" for name, value in tuned.losses.items())
    console.print(
        f"{tuned.steps:,} steps on {tuned.images:,} images in {tuned.seconds:,.0f} s: {losses}", highlight=False
    )
    if tuned.bad_images:
        console.print(f"{tuned.bad_images:,} images could not be read and were left out", style="yellow")
    console.print(f"the tuned model is in {tuned.model}: take it as --model {tuned.model.parent}", soft_wrap=True)
