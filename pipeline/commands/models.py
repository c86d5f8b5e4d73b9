"""`phrasebox models`: which CLIP models can be explained. `check` says whether one works here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from pipeline.commands.options import Json, Settings
from pipeline.config import RunConfig, load_config
from pipeline.domain import trusted
from pipeline.engines.inline import set_up
from pipeline.evaluate.metrics import METRICS
from pipeline.evaluate.model_check import SAMPLE_IMAGES, ModelCheck, check_model
from pipeline.first_look import look_at_first
from pipeline.graph import Graph, build_graph, check_files, fetch_weights
from pipeline.paths import check_writable
from pipeline.photographs import FOLDER, INPUT
from pipeline.pictures import decode_scaled, heat_map_overlay, join_pictures, make_sheet, outline_boxes, regions_overlay
from pipeline.summary import Report
from pipeline.terminal import console, errors, print_json
from stages.contract.errors import ConfigError, WeightsError
from stages.explain import kinds_for
from stages.read import plan_shards
from stages.shared.images.faults import DecodeLimits
from stages.shared.model.catalog import CATALOG
from stages.shared.model.config import ModelConfig

COLUMNS: Final = 5  # pictures side by side on the sheet of maps and regions

SUSPECTS: Final = (
    "A model with random weights looks like this. Check that the weights belong to this architecture, and that "
    "tokenizer and normalisation are those that they were trained with."
)

models = typer.Typer(
    help="List the CLIP models that can be explained, or check one.", invoke_without_command=True, rich_markup_mode=None
)


@models.callback()
def list_models(context: typer.Context, as_json: Json = False) -> None:
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
        print_json(rows)
        return
    for name, entry in CATALOG.items():
        _say(f"{name} {entry.about}")
    _say("All others are open_clip's: --model NAME/TAG downloads the weights of a tag.")
    table = Table("model", "image tower", "input", "tokens")
    for model in (model for model in rows if model["refused"] is None):
        size = (f"{model['input_px']} px", f"{model['grid']} x {model['grid']}")
        table.add_row(model["model"], model["tower"].replace("_", " "), *size)
    refused = Table("model", "why it cannot be explained")
    for model in (model for model in rows if model["refused"] is not None):
        refused.add_row(model["model"], model["refused"])
    fitting = Table("image tower", "explain.kind")
    for tower, kinds in {model["tower"]: model["explainers"] for model in rows if model["refused"] is None}.items():
        fitting.add_row(tower.replace("_", " "), ", ".join(kinds))
    for part in (table, fitting, refused):
        for column in part.columns:
            column.overflow = "fold"
        console.print(part)


def model_rows() -> list[dict[str, Any]]:
    """List the bundled models, then every name of open_clip in its order, as plain values.

    `model`; `tower`, see `TowerKind`; `input_px`, side of images; `stride_px`, pixels between tokens; `grid`, tokens
    a side; `explainers`, the kinds that are defined; `refused`, the reason if none is: the others are then null.
    """
    # torch and open_clip take seconds to import, which --help does not wait for.
    import open_clip  # noqa: PLC0415

    from stages.shared.model.recognise import describe  # noqa: PLC0415
    from stages.shared.model.towers.plan import SUPPORTED, plan_of  # noqa: PLC0415

    rows: list[dict[str, Any]] = []
    for name in (*CATALOG, *open_clip.list_models()):
        row: dict[str, Any] = dict.fromkeys(("tower", "input_px", "stride_px", "grid", "explainers", "refused"))
        try:
            is_bundled = name in CATALOG
            model = describe(ModelConfig(name=name)).architecture if is_bundled else open_clip.get_model_config(name)
            plan = plan_of(model)
            row |= {"tower": plan.kind, "input_px": plan.size_px, "stride_px": plan.stride_px, "grid": plan.grid}
            row["explainers"] = kinds_for(plan.kind)
        except (ConfigError, WeightsError) as error:
            row["refused"] = str(error).removesuffix(f". {SUPPORTED}")
        rows.append({"model": name, **row})
    return rows


@models.command()
def check(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME[/TAG]|PATH",
            help="open_clip's model and its tag of pretrained weights, e.g. ViT-B-16/laion2b_s34b_b88k; the path of a "
            "checkpoint; demo or photo; or what --weights are for: open_clip's name of a model, or a model JSON.",
        ),
    ],
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="A local checkpoint of the model (model.weights).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.jpg", help="Write a picture of the heat maps and regions."),
    ] = None,
    as_json: Json = False,
    settings: Settings = [],  # noqa: B006  typer copies it
) -> None:
    """Check in half a minute whether a model works here, on eight photographs that come with phrasebox.

    The model has to find the caption of each photograph, and to point at the things that the captions name. Settings
    and calibration are those of `phrasebox run` with this model. Exit code 0 if it passes, 1 if not.

    \b
    phrasebox models check ViT-B-16/laion2b_s34b_b88k
    phrasebox models check my-clip/
    phrasebox models check ViT-B-16 --weights model.safetensors
    phrasebox models check ViT-B-16/openai --set explain.variant=authors --json
    """
    if out is not None:
        check_writable("--out", out)
        if out.suffix.lower() not in Image.registered_extensions():
            raise ConfigError(f"--out: {out} does not end like a picture, for example in .jpg")
    options: dict[str, Any] = {"model.config" if model.endswith(".json") else "model.name": model}
    options["model.weights"] = None if weights is None else str(weights)
    config = load_config(None, settings, options={"input": INPUT, **options})
    check_files(config)
    # It imports torch.
    from stages.shared.model.device import peak_memory_bytes  # noqa: PLC0415

    graph = build_graph(config)
    fetch_weights(config.model, lambda line: errors.print(line, soft_wrap=True))
    check_result = check_model(_as_run(graph, config))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_picture(check_result, config)).save(out)
    figures = {
        "model": model,
        "weights": None if weights is None else str(weights),
        **check_result.figures,
        "peak_memory_bytes": peak_memory_bytes(check_result.device),
        "note": f"{config.model.name} {CATALOG[config.model.name].about}" if config.model.name in CATALOG else None,
        "picture": None if out is None else str(out),
        "next": _next_command(model, weights, settings, check_result.figures),
    }
    if as_json:
        print_json(figures)
    else:
        _print(figures)
    if not figures["sane"]:
        raise typer.Exit(1)


def _as_run(graph: Graph, config: RunConfig) -> Graph:
    """Return the graph of a run, which leaves out a calibration that means nothing for the photographs."""
    outside = None
    if graph.calibrated:
        with set_up((*graph.before, graph.model)):
            outside = look_at_first(graph, plan_shards(graph.reader), fits=False).outside
    return trusted(graph, outside, config, Report())[0]


def _next_command(model: str, weights: Path | None, settings: Sequence[str], figures: Mapping[str, Any]) -> str:
    """The command to type next: a run, of few images where there are cautions, or else a check of a model that works.

    figures: `ModelCheck.figures`.
    """
    if not figures["sane"]:
        return f"phrasebox {'demo' if model == 'demo' else 'models check ViT-B-16/laion2b_s34b_b88k'}"
    options = ["--set", f"model.config={model}"] if model.endswith(".json") else ["--model", model]
    options += [] if weights is None else ["--weights", str(weights)]
    options += [word for setting in settings for word in ("--set", setting)]
    limit = f"--limit {SAMPLE_IMAGES} " * bool(figures["cautions"])
    return f"phrasebox run captions.jsonl --images photos/ --out out/ {limit}{shlex.join(options)}"


def _say(text: str, style: str | None = None) -> None:
    console.print(text, style=style, soft_wrap=True)


def _print(figures: dict[str, Any]) -> None:
    retrieval = figures["retrieval"]
    pointing = figures["pointing"]
    count = len(figures["photographs"])
    console.print(_cosine_table(figures["photographs"], np.array(figures["cosines"])))
    _say(
        f"{retrieval['image_to_caption']} of {count} photographs are nearest to their own caption, "
        f"{retrieval['caption_to_image']} of {count} captions to their own photograph; by chance "
        f"{retrieval['by_chance'] / 2:.1f} ({_p_value(retrieval)})"
    )
    console.print(_figure_table(figures))
    if figures["empty_maps"]:
        _say(f"{figures['empty_maps']} of {pointing['of']} heat maps are empty")
    memory = "of the GPU" if figures["device"].startswith("cuda") else "of the whole process"
    _say(
        f"speed: {figures['images_per_s']:.1f} images/s, with {pointing['of'] / count:.1f} phrases each, on "
        f"{figures['device']}; peak memory: {figures['peak_memory_bytes'] / 1e9:.2f} GB {memory}"
    )
    if figures["picture"] is not None:
        _say(f"picture in {figures['picture']}")
    if figures["sane"]:
        _say(
            f"{figures['model']} passes the check: it knows which caption belongs to which photograph, and its heat "
            "maps lie on what the phrases name better than a spot in the middle and than the maps of other phrases.",
            "green",
        )
        lines = figures["cautions"]
    else:
        _say(f"{figures['model']} fails the sanity check on photographs:", "red")
        lines = (*figures["faults"], figures["note"] or SUSPECTS)
    for line in lines:
        _say(f"- {line}")
    _say(f"next: {figures['next']}")


def _cosine_table(names: Sequence[str], cosines: NDArray[np.float64]) -> Table:
    """Cosines of photographs and captions; < marks the highest of a row, ^ the highest of a column."""
    title = "cosine of photograph and caption; < is the best of its row, ^ of its column"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("photograph", overflow="fold")
    for number in range(1, len(names) + 1):
        table.add_column(f"{number}  ", overflow="fold", justify="right")
    best_captions = cosines.argmax(axis=1)
    best_images = cosines.argmax(axis=0)
    for i, name in enumerate(names):
        marks = [
            f"{'<' if best_captions[i] == j else ' '}{'^' if best_images[j] == i else ' '}" for j in range(len(names))
        ]
        table.add_row(f"{i + 1} {name}", *(f"{value:.2f}{mark}" for value, mark in zip(cosines[i], marks, strict=True)))
    return table


def _figure_table(figures: dict[str, Any]) -> Table:
    points, off, heat, boxes = (figures[name] for name in ("pointing", "off_centre", "heat", "boxes"))
    table = Table("", "model", "centre", "maps of other phrases", title=f"{points['of']} phrases", box=None)
    table.title_justify = "left"
    chance = f"{heat['by_chance']:.3f} ({_p_value(heat)})"
    table.add_row("heat on the thing, AUC", f"{heat['mean_auc']:.3f}", f"{heat['centre_mean_auc']:.3f}", chance)
    for name, figure, centre in (
        ("peak on the thing", points, points["centre_hits"]),
        ("the same, off the centre", off, 0),
    ):
        chance = f"{figure['by_chance']:.1f} ({_p_value(figure)})"
        table.add_row(name, f"{figure['hits']} of {figure['of']}", str(centre), chance)
    table.add_row("box recall at IoU 0.5", f"{boxes['recall']:.3f}", f"{boxes['centred_box_recall']:.3f}", "")
    table.add_row("mean box IoU", f"{boxes['mean_iou']:.3f}", "", "")
    return table


def _p_value(figure: dict[str, Any]) -> str:
    return "p < 0.0001" if figure["p"] < 1e-4 else f"p = {figure['p']:.2g}"


def _picture(check_result: ModelCheck, config: RunConfig) -> NDArray[np.uint8]:
    """Each photograph with its regions, followed by the map of each phrase with the true boxes in white."""
    limits = DecodeLimits(max_pixels=config.images.max_pixels, max_bytes=config.images.max_bytes)
    tiles = []
    for number, entry in enumerate(check_result.rows):
        content = (FOLDER / str(entry["file_name"])).read_bytes()
        rgb = decode_scaled(content, max(entry["width"], entry["height"]), limits)
        tiles.append(regions_overlay(rgb, entry["annotations"], entry["captions"]))
        for query in check_result.queries:
            if query.image == number and query.target is not None:
                values = np.zeros((1, 1), np.float32) if query.heat is None else query.heat.heat_map.values
                overlay = outline_boxes(heat_map_overlay(rgb, values), query.target.boxes_xywh_px)
                verdict = "hit" if METRICS["pointing"].value(query) else "miss"
                tiles.append(join_pictures([overlay], [f"{query.phrase}: {verdict}"]))
    return make_sheet(tiles, COLUMNS)
