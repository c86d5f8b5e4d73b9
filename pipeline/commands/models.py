"""List the CLIP models that can be explained, or check one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from phrasebox.pipeline.commands.options import MODEL_ARGUMENT, AsJson, Settings, naming_options
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.demo.photographs import INPUT
from phrasebox.pipeline.evaluate.estimates import plain_values
from phrasebox.pipeline.evaluate.model_check import CheckFigures, check_model
from phrasebox.pipeline.run.generic import reject_generic
from phrasebox.pipeline.run.steps import build_steps, check_files, fetch_weights
from phrasebox.pipeline.run.warm_up import drop_meaningless_calibration
from phrasebox.pipeline.terminal import console, errors, print_json, say
from phrasebox.stages.contract.errors import ConfigError, WeightsError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.explain import EXPLAINERS, kinds_for
from phrasebox.stages.model.catalog import CATALOG
from phrasebox.stages.model.checkpoints.dual_encoders import DUAL_ENCODERS, REFUSED
from phrasebox.stages.model.config import ModelConfig, TowerKind
from phrasebox.stages.model.families import FAMILIES, Commercial, ModelFamily, family_of, family_of_folder
from phrasebox.stages.model.vocabularies import vocabulary_of

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
    """List the models that come with phrasebox, every name of open_clip, and the folders of transformers that load.

    Columns: image tower, input, image tokens, longest text, memory of the words, languages and licences. Where a name
    has several licences, the tag decides: a table of families says how. The card of the weights has the last word.

    Decided from the configurations alone: nothing is built, read or downloaded. What cannot be explained comes last,
    with the reason.

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
    for part in (
        _table_of_models(rows),
        _table_of_explainers(rows),
        _table_of_families(),
        _table_of_refusals(rows),
    ):
        for column in part.columns:
            column.overflow = "fold"
        console.print(part)
    say(console, *EXPLAINERS.load_all()[1])


def _table_of_models(rows: Sequence[ModelRow]) -> Table:
    table = Table("model", "image tower", "input", "grid", "text tokens", "words", "languages", "licence")
    table.columns[0].min_width = 18
    for row in rows:
        if row.refused is None:
            table.add_row(
                row.model,
                (row.tower or "by its files").replace("_", " "),
                "" if row.input_px is None else f"{row.input_px} px",
                "" if row.grid is None else f"{row.grid} x {row.grid}",
                "" if row.text_tokens is None else str(row.text_tokens),
                "" if row.vocabulary_bytes is None else f"{row.vocabulary_bytes / 1e6:,.0f} MB",
                ", ".join(dict.fromkeys(part.languages for part in row.weights)),
                ", ".join(dict.fromkeys(part.licence for part in row.weights)),
            )
    return table


def _table_of_explainers(rows: Sequence[ModelRow]) -> Table:
    table = Table("image tower", "explain.kind")
    kinds_by_tower = {row.tower: row.explainers for row in rows if row.tower and row.explainers}
    for tower, kinds in kinds_by_tower.items():
        table.add_row(tower.replace("_", " "), ", ".join(map(EXPLAINERS.label, kinds)))
    return table


def _table_of_families() -> Table:
    table = Table(
        "weights of", "licence", "commercial use", "languages", "names, or model_type of a folder"
    )
    for family in FAMILIES:
        names = [*family.weights, *(f"folder: {model_type}" for model_type in family.model_types)]
        table.add_row(family.name, family.licence, family.commercial, family.languages, ", ".join(names))
    return table


def _table_of_refusals(rows: Sequence[ModelRow]) -> Table:
    table = Table("model", "why it cannot be explained")
    for row in rows:
        if row.refused is not None:
            table.add_row(row.model, row.refused)
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsRow:
    """Pretrained weights of a model, or those of a folder of transformers.

    Attributes:
        tag: open_clip's tag; None for a bundled model and for a folder.
        family: Name of their family.
        licence: Licence, as the family's card says.
        commercial: Whether the licence allows commercial use.
        languages: Languages of the texts that they were trained with.
    """

    tag: str | None = None
    family: str
    licence: str
    commercial: Commercial
    languages: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A model and what can explain it; for a model that nothing explains, the tower and what follows from it are None.

    Attributes:
        model: Name of the model, or `folder: ` and the `model_type` of its `config.json`.
        tower: Kind of its image tower; None for a folder, whose files say it.
        input_px: Side of its images.
        grid: Image tokens a side.
        text_tokens: Tokens of the longest text; None where the folder says it.
        vocabulary_bytes: Memory of the table of its words, in float32.
        weights: Its pretrained weights.
        explainers: Kinds of explainers that are defined on it.
        refused: Why none is.
    """

    model: str
    tower: TowerKind | None = None
    input_px: int | None = None
    grid: int | None = None
    text_tokens: int | None = None
    vocabulary_bytes: int | None = None
    weights: list[WeightsRow] = field(default_factory=list)
    explainers: list[str] | None = None
    refused: str | None = None


def model_rows() -> list[ModelRow]:
    """List the bundled models, every name of open_clip in its order, and the folders of transformers."""
    # torch and open_clip take seconds to import, which --help does not wait for.
    import open_clip  # noqa: PLC0415

    rows = [_row_of_name(name) for name in (*CATALOG, *open_clip.list_models())]
    for model_type, kind in DUAL_ENCODERS.items():
        family = family_of_folder(model_type)
        weights = [] if family is None else [_weights_row(family)]
        rows.append(ModelRow(model=f"folder: {model_type}", text_tokens=kind.most_tokens, weights=weights))
    return rows + [ModelRow(model=f"folder: {name}", refused=reason) for name, reason in REFUSED.items()]


def _row_of_name(name: str) -> ModelRow:
    import open_clip  # noqa: PLC0415  as in model_rows

    from phrasebox.stages.model.describe import describe  # noqa: PLC0415
    from phrasebox.stages.model.towers.plan import SUPPORTED, plan_of  # noqa: PLC0415

    tags = [None] if name in CATALOG else open_clip.list_pretrained_tags_by_model(name)
    families = {tag: family_of(name if tag is None else f"{name}/{tag}") for tag in tags}
    weights = [_weights_row(family, tag) for tag, family in families.items() if family is not None]
    try:
        model = (
            describe(ModelConfig(name=name)).architecture
            if name in CATALOG
            else open_clip.get_model_config(name)
        )
        plan = plan_of(model)
    except (ConfigError, WeightsError) as error:
        return ModelRow(model=name, weights=weights, refused=str(error).removesuffix(f". {SUPPORTED}"))
    vocabulary = vocabulary_of(model["text_cfg"])
    return ModelRow(
        model=name,
        tower=plan.kind,
        input_px=plan.size_px,
        grid=plan.grid,
        text_tokens=None if vocabulary is None else vocabulary.context,
        vocabulary_bytes=None if vocabulary is None else vocabulary.size_bytes,
        weights=weights,
        explainers=kinds_for(plan.kind),
    )


def _weights_row(family: ModelFamily, tag: str | None = None) -> WeightsRow:
    return WeightsRow(
        tag=tag,
        family=family.name,
        licence=family.licence,
        commercial=family.commercial,
        languages=family.languages,
    )


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
    reject_generic(steps)
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
