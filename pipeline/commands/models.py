"""List the CLIP models that can be explained, or check one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from phrasebox.pipeline.commands.options import MODEL_ARGUMENT, AsJson, Settings, naming_options
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.demo.photographs import INPUT
from phrasebox.pipeline.evaluate.estimates import plain_values
from phrasebox.pipeline.evaluate.model_check import CheckFigures, check_model
from phrasebox.pipeline.run.steps import build_steps, check_files, fetch_weights
from phrasebox.pipeline.run.warm_up import drop_meaningless_calibration
from phrasebox.pipeline.terminal import console, errors, print_json, say
from phrasebox.stages.contract.errors import ConfigError, WeightsError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.explain import EXPLAINERS, kinds_for
from phrasebox.stages.model.catalog import CATALOG
from phrasebox.stages.model.config import ModelConfig, TowerKind

SUSPECTS: Final = (
    "A model with random weights looks like this. Check that the weights belong to this architecture, and that "
    "tokenizer and normalisation are those that they were trained with."
)

models = typer.Typer(
    help="List the CLIP models that can be explained, or check one.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
)


@models.callback()
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the models that come with phrasebox and every name of open_clip: image tower, input, and fitting explainers.

    Decided from the configurations alone: nothing is built, read or downloaded. Names that cannot be explained come
    last, with the reason.

    \b
    phrasebox models
    phrasebox models --json
    phrasebox models check ViT-B-16/laion2b_s34b_b88k
    """
    if context.invoked_subcommand is not None:
        return
    rows = model_rows()
    if as_json:
        print_json(plain_values(rows))
        return
    say(console, *(f"{name} {entry.about}" for name, entry in CATALOG.items()))
    say(console, "All others are open_clip's: --model NAME/TAG downloads the weights of a tag.")
    table = Table("model", "image tower", "input", "tokens")
    refused = Table("model", "why it cannot be explained")
    fitting = Table("image tower", "explain.kind")
    kinds_by_tower: dict[str, list[str]] = {}
    for row in rows:
        if row.tower is None or row.explainers is None:
            refused.add_row(row.model, row.refused)
        else:
            tower = row.tower.replace("_", " ")
            table.add_row(row.model, tower, f"{row.input_px} px", f"{row.grid} x {row.grid}")
            kinds_by_tower[tower] = row.explainers
    for tower, kinds in kinds_by_tower.items():
        fitting.add_row(tower, ", ".join(map(EXPLAINERS.label, kinds)))
    for part in (table, fitting, refused):
        for column in part.columns:
            column.overflow = "fold"
        console.print(part)
    say(console, *EXPLAINERS.load_all()[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A model and what can explain it; for a model that nothing explains, all but the reason is None.

    Attributes:
        model: Name of the model.
        tower: Kind of its image tower.
        input_px: Side of its images.
        grid: Tokens a side.
        explainers: Kinds of explainers that are defined on it.
        refused: Why none is.
    """

    model: str
    tower: TowerKind | None = None
    input_px: int | None = None
    grid: int | None = None
    explainers: list[str] | None = None
    refused: str | None = None


def model_rows() -> list[ModelRow]:
    """List the bundled models, then every name of open_clip in its order."""
    # torch and open_clip take seconds to import, which --help does not wait for.
    import open_clip  # noqa: PLC0415

    from phrasebox.stages.model.describe import describe  # noqa: PLC0415
    from phrasebox.stages.model.towers.plan import SUPPORTED, plan_of  # noqa: PLC0415

    rows: list[ModelRow] = []
    for name in (*CATALOG, *open_clip.list_models()):
        try:
            is_bundled = name in CATALOG
            model = (
                describe(ModelConfig(name=name)).architecture
                if is_bundled
                else open_clip.get_model_config(name)
            )
            plan = plan_of(model)
        except (ConfigError, WeightsError) as error:
            rows.append(ModelRow(model=name, refused=str(error).removesuffix(f". {SUPPORTED}")))
        else:
            rows.append(
                ModelRow(
                    model=name,
                    tower=plan.kind,
                    input_px=plan.size_px,
                    grid=plan.grid,
                    explainers=kinds_for(plan.kind),
                )
            )
    return rows


CheckedModel = Annotated[
    str,
    typer.Argument(
        metavar="NAME[/TAG]|PATH",
        help="open_clip's model and its tag of pretrained weights, e.g. ViT-B-16/laion2b_s34b_b88k; the path of a "
        "checkpoint; demo or photo; or what --weights are for: open_clip's name of a model, or a model JSON.",
    ),
]


@models.command()
@naming_options({**MODEL_ARGUMENT, "model.weights": "--weights"})
def check(
    model: CheckedModel,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="A local checkpoint of the model (model.weights)."),
    ] = None,
    as_json: AsJson = False,
    settings: Settings = [],  # noqa: B006  typer copies it
) -> None:
    """Check in half a minute whether a model works here, on the photographs that come with phrasebox.

    The model has to find the caption of each photograph, and to point at the objects that the captions name. Settings
    and calibration are those of `phrasebox run` with this model. Exit code 0 if it passes, 1 if not.

    \b
    phrasebox models check ViT-B-16/laion2b_s34b_b88k
    phrasebox models check my-clip/
    phrasebox models check ViT-B-16 --weights model.safetensors
    phrasebox models check ViT-B-16/openai --set explain.variant=authors --json
    """
    options: Json = {"model.config" if model.endswith(".json") else "model.name": model}
    options["model.weights"] = None if weights is None else str(weights)
    config = load_config(None, settings, options={"input": INPUT, **options})
    check_files(config)
    from phrasebox.stages.model.device import peak_memory_bytes  # noqa: PLC0415  it imports torch

    steps = build_steps(config)
    fetch_weights(steps.description, lambda line: say(errors, line))
    model_check = check_model(drop_meaningless_calibration(steps, config.input, config.regions.calibration))
    figures = model_check.measure()
    memory_bytes = peak_memory_bytes(model_check.device)
    if as_json:
        print_json(
            {
                "model": model,
                "weights": None if weights is None else str(weights),
                "device": model_check.device,
                "images_per_s": model_check.images_per_s,
                "peak_memory_bytes": memory_bytes,
                **plain_values(figures),
                "sane": not figures.faults,
                "faults": figures.faults,
                "cautions": figures.cautions,
            }
        )
    else:
        _print_figures(figures)
        say(
            console,
            f"speed: {model_check.images_per_s:.1f} images/s, with all phrases of their captions, on "
            f"{model_check.device}; peak memory: {memory_bytes / 1e9:.2f} GB",
        )
        _print_answer(model, figures)
    if figures.faults:
        raise typer.Exit(1)


def _print_figures(figures: CheckFigures) -> None:
    count = figures.photographs
    say(
        console,
        f"{figures.image_to_caption} of {count} photographs are nearest to their own caption, "
        f"{figures.caption_to_image} of {count} captions to their own photograph; by chance 1 of each",
    )
    table = Table(
        "", "model", "middle of the image", "maps of other phrases", title=f"{figures.phrases} phrases"
    )
    others_auc = f"{figures.heat_auc - figures.others_gain.value:.3f}"
    table.add_row(
        "heat on the object, AUC", f"{figures.heat_auc:.3f}", f"{figures.centre_auc:.3f}", others_auc
    )
    table.add_row(
        "peak on the object", f"{figures.peaks} of {figures.phrases}", str(figures.centre_hits), ""
    )
    table.add_row(
        "box recall at IoU 0.5", f"{figures.box_recall:.3f}", f"{figures.centred_box_recall:.3f}", ""
    )
    console.print(table)


def _print_answer(model: str, figures: CheckFigures) -> None:
    """Print whether the model passes, and why not or what to look at."""
    if figures.faults:
        say(console, f"{model} fails the sanity check on photographs:")
        suspects = f"{model} {CATALOG[model].about}" if model in CATALOG else SUSPECTS
        lines = [*figures.faults, suspects]
    else:
        say(
            console,
            f"{model} passes the check: it knows which caption belongs to which photograph, and its heat maps lie on "
            "what the phrases name better than a spot in the middle and than the maps of other phrases.",
        )
        lines = figures.cautions
    say(console, *(f"- {line}" for line in lines))
