"""The steps of `make figures`. Each returns tables and figures for pages; finished parts are not made again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from pipeline.commands.tables import ABSENT_ROWS
from pipeline.config import load_config
from pipeline.evaluate.compare.comparison import Source, compared
from pipeline.evaluate.compare.figures import FIGURES, SANITY, sizes_of
from pipeline.evaluate.compare.maps import contenders_of
from pipeline.evaluate.compare.pictures import Effort
from pipeline.evaluate.evaluation import evaluation_of
from pipeline.evaluate.judged import judged_dataset
from pipeline.evaluate.tune import tuned
from pipeline.plan import Costs, Machine, forecast
from tests.figures.pages import ROOT, put
from tests.figures.settings import GRIDS
from tests.photos.measure import Photographs, console
from tests.photos.reviews import reviewed

Pages = dict[str, dict[str, list[dict[str, Any]]]]  # page -> "tables" and "said"

DEV: Final = {"split": "Flickr8k dev", "model": "photo"}
SCENES: Final = {"split": "drawn scenes, series 4242", "model": "demo"}
DRAWN: Final = "scenes/4242/500"
PHOTO: Final = Path("configs/photos.yaml")
FINE: Final = Path("configs/photos-fine.yaml")
WITHOUT: Final = "regions.calibration=none"
PLAIN: Final = ("regions.upsample=linear", "regions.rule=otsu")
OF_DRAWINGS: Final = (
    "explain.contrast=0.25",
    "explain.affinity=none",
    "regions.smooth_patches=0.5",
    "regions.rule=otsu",
    WITHOUT,
)


def table(
    name: str, command: str, columns: Sequence[Any], rows: Sequence[Sequence[Any]], **known: Any
) -> dict[str, Any]:
    """Return a table; known: n, split, model, settings."""
    empty = dict.fromkeys(("step", "commit", "n", "split", "model", "settings"))
    return {"id": name, **empty, "command": command, **known, "columns": list(columns), "rows": [list(r) for r in rows]}


def cells(figures: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """Return the cells of figures by name, with their intervals; null where there is none."""
    found = [figures.get(name) for name in names]
    return [each and {key: each[key] for key in ("value", "low", "high")} for each in found]


def n_of(found: Mapping[str, Any], images: str) -> str:
    """Return how many images, by this name, and phrases an evaluation has."""
    return f"{found['counts']['images']:,} {images}, {found['counts']['targets']:,} phrases"


def drawings(own: Photographs) -> Pages:
    """Regions and scores of the model `demo` on 500 drawn scenes."""
    names = ("pointing", "pointing_15px", "box_recall", "box_iou", "mask_iou")
    columns = ("", "pointing", "within 15 px", "box recall (ANY) at IoU 0.5", "mean box IoU", "mask IoU")
    found = own.figures(DRAWN, "demo", "demo", absent=True)
    groups = found["groups"]
    others = {
        "`regions.upsample=linear`, `regions.rule=otsu`": PLAIN,
        "the same and `regions.refine: grabcut`": (*PLAIN, "regions.refine=grabcut"),
        "plain Grad-ECLIP: last block, threshold at the mean": (
            *("explain.blocks=1", "explain.contrast=0", "explain.affinity=none", "regions.smooth_patches=0"),
            *("regions.upsample=linear", "regions.rule=mean", "regions.group=none", WITHOUT),
        ),
    }
    rows = [["**the settings that `demo` brings**", *cells(found["metrics"], names)]]
    for label, members in (
        ("phrases for one thing", groups["number"]["singular"]),
        ("phrases for several", groups["number"]["plural"]),
        ("pairs of colour and kind never shown in training", groups["combination"]["unseen"]),
    ):
        rows.append([f"{label} ({members['pointing']['n']:,})", *cells(members, names)])
    for number, (label, settings) in enumerate(others.items()):
        rows.append([label, *cells(own.figures(DRAWN, "demo", f"demo-{number}", *settings)["metrics"], names)])
    for label, name in (("centre of the image", "centre"), ("random", "chance")):
        rows.append([label, *cells(found["metrics"], [name]), None, None, None, None])
    kept = [each for each in found["thresholds"] if each["score"] in (0.0, 0.5, 0.8, 0.9)]
    shares = [[title, *(100 * each[key] for each in kept)] for title, key in (("kept", "kept"), ("right", "precision"))]
    percent = [[f"{each['score']:g}", "{:.0f} %"] for each in kept]
    command = "phrasebox eval out/scenes --truth scenes/truth.json --absent"
    ranked = [
        found["scores"][name][key] for name in ("score", "mean_heat", "similarity") for key in ("value", "low", "high")
    ]
    said = [
        {
            "about": "calibration error of score, 500 scenes, series 4242",
            "command": command,
            "values": [found["calibration_error"][key] for key in ("value", "low", "high")],
        },
        {
            "about": "area under the risk-coverage curve by score, by mean heat, by similarity; the same scenes",
            "command": command,
            "values": ranked,
        },
    ]
    known = {**SCENES, "n": n_of(found, "scenes")}
    tables = [
        table("regions", command, columns, rows, **known),
        table("thresholds", command, ["regions with a score of at least (first row)", *percent], shares, **known),
    ]
    return {"drawings": {"tables": tables, "said": said}}


WHERE: Final = {
    "pointing": "pointing",
    "pointing_off_centre": "off the centre",
    "box_recall": "box recall, ANY",
    "box_recall_merged": "MERGED",
    "box_recall_above_text": "ANY above text alone",
    "box_iou": "mean box IoU",
}
BESIDE: Final = {
    "text alone: the usual place of the head noun in the other half of the photographs": (
        ("text_point", "text_point_off_centre", "text_box", "text_box_merged"),
        "500, the other half",
    ),
    "the region of another phrase of the image, defaults": (("", "", "other_box", "other_box_merged"), "500"),
    "centre of the image; a box with 0.8 of each side in its middle": (
        ("centre", "", "centred_box", "centred_box_merged"),
        "none",
    ),
    "any pixel; the whole image": (("chance", "", "whole_image", "whole_image_merged"), "none"),
}
BY_TYPE: Final = {
    "box_recall_above_text": "ANY above text alone",
    "box_recall": "box recall, ANY",
    "text_box": "text alone",
    "box_recall_merged": "MERGED",
    "text_box_merged": "text alone",
    "pointing": "pointing",
    "text_point": "text alone",
    "centre": "centre",
}


def photographs(own: Photographs) -> Pages:
    """Regions of the model `photo` on 1,000 photographs, with several settings, beside answers without a map."""
    dev = "flickr8k/dev"
    drawn = "`model.name: demo`, which knows drawn things, Otsu's rule"
    rows = [[drawn, "none", *cells(own.figures(dev, "demo", "demo", *PLAIN)["metrics"], [*WHERE])]]
    of_drawings = "`photo`, settings of drawings: contrast 0.25, no affinity, blur 0.5, Otsu's rule"
    alone = "`photo`, defaults where no calibration fits: cut at 0.2 of the highest heat"
    for name, label, settings in (
        ("drawings", of_drawings, OF_DRAWINGS),
        ("apart", "the same with `regions.group: none`, each phrase by itself", (*OF_DRAWINGS, "regions.group=none")),
        ("alone", alone, (WITHOUT,)),
        ("mean", "the same with `regions.rule: mean`", ("regions.rule=mean", WITHOUT)),
    ):
        found = own.figures(dev, "photo", name, *settings, file=PHOTO)["metrics"]
        rows.append([label, "none", *cells(found, [*WHERE])])
    default = own.figures(dev, "photo", "photos", file=PHOTO, absent=True)
    fine = own.figures(dev, "photo", "photos-fine", file=FINE, absent=True)
    rows.append(["**`photo`, defaults** (`photos.yaml`)", "500", *cells(default["metrics"], [*WHERE])])
    fine_label = "**`photo`, `photos-fine.yaml`**: three sizes of each image"
    rows.append([fine_label, "500", *cells(fine["metrics"], [*WHERE])])
    rows += [[label, n, *cells(default["metrics"], names), None, None] for label, (names, n) in BESIDE.items()]
    types = default["groups"]["type"]
    order = sorted(types, key=lambda name: -types[name]["pointing"]["n"])
    lines = [[name, types[name]["pointing"]["n"], *cells(types[name], [*BY_TYPE])] for name in order]
    command = "phrasebox eval out/photos --truth dev.entities.tar.gz --absent"
    known = {**DEV, "n": n_of(default, "photographs")}
    by_type = ["defaults by type", ["phrases", "{:,}"], *BY_TYPE.values()]
    tables = [
        table("regions", command, ["", "annotated images of the fit", *WHERE.values()], rows, **known),
        table("by-type", command, by_type, lines, **known, settings=str(PHOTO)),
    ]
    said = [
        {
            "about": f"{file.name}: calibration error of score, and the plain one; precision and share from 0.5 on",
            "command": command,
            "values": [
                *found["calibration_error"].values(),
                *found["calibration_error_plain"].values(),
                *(half["precision"], half["kept"]),
            ],
        }
        for file, found in ((PHOTO, default), (FINE, fine))
        for half in found["thresholds"]
        if half["score"] == 0.5
    ]
    return {"photographs": {"tables": tables, "said": said}}


ABSENT_WAYS: Final = {
    "presence": "presence of the phrase",
    "presence_of_group": "shared by a thing's texts",
    "z_score": "z-score of the cosine",
    "similarity": "cosine",
    "saco": "SA-Co's rule, score of 0.5 or more",
}


def absent(own: Photographs) -> Pages:
    """Presence of phrases that are not in the image, on photographs and scenes."""
    photos = own.figures("flickr8k/dev", "photo", "photos", file=PHOTO, absent=True)
    alone = own.figures("flickr8k/dev", "photo", "alone", WITHOUT, file=PHOTO, absent=True)
    scenes = own.figures(DRAWN, "demo", "demo", absent=True)
    columns = [
        (f"{images}{title}", found if way == "saco" else found["by"][way] or {})
        for images, found, ways in (
            ("photographs: ", photos, ABSENT_WAYS),
            ("photographs, without annotations: ", alone, {"presence": "presence"}),
            ("scenes: ", scenes, {"presence": "presence", "similarity": "cosine"}),
        )
        for way, title in ways.items()
    ]
    shown = [found.get("saco", found) for _, found in columns]
    rows = [[label, *(cells(found, [name])[0] for found in shown)] for name, label in ABSENT_ROWS.items()]
    for label, name in (("calibration error of `score`", "ece"), ("of phrases that are there", "ece_there")):
        rows.append([label, *(cells(found, [name])[0] for _, found in columns)])
    kept = [
        [f"{here['presence']:g}", *(100 * each[kind] for each in (here, there) for kind in ("there", "absent"))]
        for here, there in zip(photos["kept"], scenes["kept"], strict=True)
    ]
    of = ("photographs: kept of phrases that are there", "of absent ones", "scenes: kept", "of absent ones")
    counts = [(found["counts"]["images"], found["pairs"]) for found in (photos, scenes)]
    n = "; ".join(
        f"{images:,} images, {pairs['there']:,} phrases that are there, {pairs['random']:,} absent"
        for images, pairs in counts
    )
    known = {"n": n, "split": f"{DEV['split']}; {SCENES['split']}", "model": "photo; demo"}
    command = "phrasebox eval out/photos --truth dev.entities.tar.gz --absent"
    titles = ["`regions.min_presence`", *([title, "{:.1f} %"] for title in of)]
    tables = [
        table("absent", command, ["", *(title for title, _ in columns)], rows, **known, settings="absent_share 0.5"),
        table("min-presence", command, titles, kept, **known),
    ]
    return {"photographs": {"tables": tables, "said": []}}


def tune(own: Photographs) -> Pages:
    """What `phrasebox tune` finds for cuts on 200 photographs of train."""
    train = "flickr8k/train"
    made = own.dataset(train, "photo", "photos", WITHOUT, file=PHOTO)
    found = tuned(judged_dataset(made, own.truth(train), resized=True), console, most=200, maps={})
    names = ("pointing", "pointing_off_centre", "box_recall", "box_iou")
    rows = [["the defaults without a calibration", *(found["base"][name] for name in names), None]]
    for step in found["steps"]:
        label = ", ".join(f"{key.partition('.')[2]} {value}" for key, value in step["changes"].items())
        label = f"**{label}**" if step["kept"] else label
        rows.append([label, *(step["figures"][name] for name in names), *cells(step, ["gain"])])
    known = {
        "n": f"{found['images']:,} photographs, {found['known']:,} phrases",
        "split": "Flickr8k train, of the last 500",
        "model": "photo",
    }
    columns = ("", "pointing", "off the centre", "box recall", "mean box IoU", "gain in box recall")
    command = "phrasebox tune out/train --truth train.entities.tar.gz --resized --most 200"
    return {"photographs": {"tables": [table("tuned", command, columns, rows, **known)], "said": []}}


def settings(own: Photographs) -> Pages:
    """Rows with other settings each, on scenes and photographs."""
    pages: Pages = {grid.page: {"tables": [], "said": []} for grid in GRIDS}
    for grid in GRIDS:
        rows = []
        for number, (label, changes) in enumerate(grid.rows):
            name = f"{grid.page}-{grid.name}-{number}"
            found = own.figures(grid.images, grid.model, name, *grid.common.split(), *changes.split())
            rows.append([label, *cells(found["metrics"], grid.columns)])
        columns = [grid.title, *(name.replace("_", " ") for name in grid.columns)]
        command = f"python -m tests.figures --only settings: phrasebox run with {grid.common}"
        made = table(
            grid.name,
            command,
            columns,
            rows,
            n=n_of(found, grid.known["images"]),
            split=grid.known["split"],
            model=grid.model,
        )
        pages[grid.page]["tables"].append(made)
    return pages


CURVED: Final = tuple(f"{name}_rise{by}" for by in ("", "_cosine") for name in ("deletion", "insertion"))
LOCAL: Final = ("pointing", "energy", "box_recall", "box_recall_otsu", "mask_iou", *CURVED)
PLACES: Final = ("pointing", "pointing_off_centre", *LOCAL[1:4], *CURVED)
SANE: Final = ("weights_all", "phrase_swapped")
PATENTED: Final = "grad_eclip,lrp,clrp,sg_lrp"
PERTURBED: Final = "grad_eclip,rise:masks={0},occlusion,partition_shap:max_evaluations={0},score_cam:channels={1},m2ib"
CHEAP: Final = ",".join(each.label for each in contenders_of(None, "class_token", "demo"))
EXPLAINED: Final = {
    "scenes": ("demo", f"{CHEAP},grad_eclip:blocks=1", 200, (*LOCAL, *SANE)),
    "photographs": ("photo", None, 200, (*PLACES, *SANE, "same_thing", "other_thing")),
    "patented-scenes": ("demo", f"{PATENTED},transformer_interpretability", 200, (*LOCAL, *SANE)),
    "patented-photographs": ("photo", PATENTED, 200, (*PLACES, *SANE)),
    "perturbation-scenes": ("demo", PERTURBED.format(256, 128), 24, LOCAL),
    "perturbation-photographs": ("photo", PERTURBED.format(128, 64), 12, PLACES),
}
"""Table -> model, explainers (None: all that are cheap and defined on it), images, and figures."""


def explainers(own: Photographs) -> Pages:
    """Explainers beside Grad-ECLIP; a comparison that is there is not made again."""
    tables = []
    for name, (model, kinds, images, figures) in EXPLAINED.items():
        known = own.out / "compared" / f"{name}.json"
        pictures = "flickr8k/dev" if model == "photo" else "scenes/0/200"
        if not known.is_file():
            config = load_config(None, own.settings(pictures, model))
            source = Source(name=pictures, config=config, truth=own.truth(pictures))
            effort = Effort(most=images, phrases=8, faithful=images, seed=0)
            found = compared(source, kinds, effort, console)
            known.parent.mkdir(parents=True, exist_ok=True)
            known.write_text(json.dumps(found.rows), encoding="utf-8")
        rows = json.loads(known.read_text("utf-8"))
        counts = rows[0]["counts"]
        lines = [
            [
                f"*{row['explainer']}*" if row["baseline"] else f"`{row['explainer']}`",
                *(_marked(row, figure) for figure in figures),
                row["cost"]["encode_image"] if "cost" in row else None,
            ]
            for row in rows
        ]
        lines.append(["n", *sizes_of(rows, figures), None])
        titles = ["explainer", *(FIGURES[figure].title for figure in figures), ["cost", "{:.1f}x"]]
        curves, sane = f"curves of {counts['curves']} phrases", f"shuffled weights on {counts['sanity']} images"
        n = f"{counts['images']} images, {counts['phrases']:,} phrases; {curves}; {sane}"
        split = "Flickr8k dev" if model == "photo" else "drawn scenes, series 0"
        command = f"phrasebox compare {pictures} --model {model} --most {images} --faithful {images} --json"
        command += f" --explainers {kinds}" if kinds else ""
        tables.append(table(name, command, titles, lines, n=n, split=split, model=model))
    return {"explainers": {"tables": tables, "said": []}}


def _marked(row: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """A cell with + or - where the figure differs from Grad-ECLIP's by more than chance, over all marks.

    Checks of few images have their interval, too.
    """
    if name not in row["figures"]:
        return None
    shown = ("value", "low", "high") if name in SANITY else ("value",)
    cell = {key: row["figures"][name][key] for key in shown}
    difference = (row["differences"] or {}).get(name) or {}
    if difference.get("mark"):
        cell["mark"] = difference["mark"]
    return cell


def reviews(own: Photographs) -> Pages:
    """How many answers of people make scores probabilities."""
    command = "python -m tests.figures --only reviews"
    return {"reviews": {"tables": [table(command=command, **each) for each in reviewed(own)], "said": []}}


def proof(own: Photographs) -> Pages:
    """Models that learned from the regions of several sources: `configs/proof`."""
    tables, said = list[dict[str, Any]](), list[dict[str, Any]]()
    for plan in ("scenes", "photos"):
        out, program = own.out / f"proof-{plan}", ("-m", "configs.proof.prove", f"configs/proof/{plan}.yaml")
        called(*program, "--out", str(out), "--photos", str(own.source / "flickr8k"))
        made, command = json.loads((out / "tables.json").read_text("utf-8")), f"python {' '.join(program)} --photos DIR"
        tables += (table(command=command, **each) for each in made["tables"])
        said += ({**each, "command": command} for each in made["said"])
    return {"proof": {"tables": tables, "said": said}}


SOURCES: Final = {
    "`heat_maps`, the default": ("", 60, 100),
    "`proposals`, `by: roi`": ("source.kind=proposals source.by=roi", 60, 40),
    "`proposals`, `by: crop`": ("source.kind=proposals source.by=crop", 16, 5),
    "`grid`, `by: roi`": ("source.kind=grid source.by=roi", 60, 100),
    "`grid`, `by: crop`": ("source.kind=grid source.by=crop", 60, 20),
    "`crops`, `by: crop`": ("source.kind=crops source.by=crop", 60, 20),
    "`boxes`: the truth itself": ("source.kind=boxes source.truth={truth}", 60, 100),
}
"""Row -> settings, scenes and photographs. Those that look at crops look many times at each image."""


def sources(own: Photographs) -> Pages:
    """Cost and boxes of each source of regions, before a model learns from them."""
    rows = []
    for number, (label, (settings, *counts)) in enumerate(SOURCES.items()):
        row: list[Any] = [label]
        for images, model, count in (("scenes/77/200", "demo", counts[0]), ("flickr8k/dev", "photo", counts[1])):
            name, known = f"source-{number}", own.out / "sources" / f"{model}-{number}.json"
            if not known.is_file():
                changes = settings.format(truth=own.truth(images)).split()
                start = time.process_time()
                made = own.dataset(images, model, name, f"input.limit={count}", "output.heat_maps=false", *changes)
                seconds = time.process_time() - start
                bytes_of_all = sum(path.stat().st_size for path in (made / "data").glob("*.parquet"))
                known.parent.mkdir(parents=True, exist_ok=True)
                known.write_text(json.dumps([seconds / count, bytes_of_all / count]), encoding="utf-8")
            made = own.out / "datasets" / images / name
            regions = json.loads((made / "dataset.json").read_text("utf-8"))["counts"]["regions"]
            found = evaluation_of(made, own.truth(images), console, maps=False)["metrics"]
            row += [count, *json.loads(known.read_text("utf-8")), regions / count, *cells(found, ["box_recall"])]
        rows.append(row)
    titles = (["images", "{:,.0f}"], ["s of a core", "{:.2f}"], ["bytes", "{:,.0f}"], ["regions", "{:.1f}"])
    columns: list[Any] = ["source"]
    for images in ("scenes", "photographs"):
        columns += [*([f"{images}: {title}", how] for title, how in titles), f"{images}: box recall, ANY"]
    command = "phrasebox run ... --set source.kind=grid --set source.by=roi; phrasebox eval --no-maps"
    known_of_all = {"split": "drawn scenes, series 77; Flickr8k dev", "model": "demo; photo"}
    made_table = table("sources", command, columns, rows, n="seconds and bytes of an image", **known_of_all)
    return {"sources": {"tables": [made_table], "said": []}}


def speed(own: Photographs) -> Pages:
    """Time of a run beside the bare encoder, a trace of a GPU's work, and the host's cost beside it."""
    lines = printed("-m", "tests.bench")
    rows = [[line["name"].replace("_", " "), f"{line['value']:g} {line['unit']}", line["against"]] for line in lines]
    bench = table("bench", "make bench", ("figure", "value", "against"), rows, model="random weights")
    by_phrases: dict[str, list[float]] = {}
    for line in printed("-m", "tests.cuda.traced"):
        by_phrases.setdefault(line["name"].split("_")[1], []).append(line["value"])
    products = (["products in bf16, TFLOP", "{:.2f}"], ["in fp32, TFLOP", "{:.3f}"], ["written, GB", "{:.1f}"])
    times = (["H100, estimate: device, ms", "{:.1f}"], ["launching, ms", "{:.1f}"], ["images/s at most", "{:,.0f}"])
    columns = ("phrases an image", ["launches", "{:,.0f}"], *products, *times)
    rows = [[phrases, *values] for phrases, values in by_phrases.items()]
    known = {"model": "ViT-B-16 in bf16, batches of 64", "settings": "configs/photos-gpu.yaml and presence"}
    traced = table("traced", "python -m tests.cuda.traced", columns, rows, **known)
    photographs, captions = str(own.images("flickr8k/dev")), str(own.captions("flickr8k/dev"))
    runs = printed("-m", "tests.pipeline.engines.host_cost", photographs, captions, "--images", "32")
    steps = [key for key in runs[0] if key not in ("captions", "known", "images")]
    titles = [
        [f"{'one caption' if run['captions'] == 1 else 'five captions'}{', `input.phrases`' * run['known']}", "{:.2f}"]
        for run in runs
    ]
    command = "python -m tests.pipeline.engines.host_cost PHOTOGRAPHS CAPTIONS.jsonl --images 32"
    known = {"n": "32 photographs of 640 px, the fewest of 3 rounds", "split": "Flickr8k dev", "model": "demo"}
    host = table(
        "host", command, ["ms an image", *titles], [[step, *(run[step] for run in runs)] for step in steps], **known
    )
    cost = "tests.stages.shared.model.segmenter_cost"
    rows = [
        [each["model"], *(each[key] for key in ("encode_ms", "encode_trunks", "prompt_ms", "prompt_trunks"))]
        for each in printed("-m", cost)
    ]
    titles = [
        ["", ""],
        ["ms an image", "{:,.0f}"],
        ["trunks", "{:.1f}"],
        ["ms a prompt", "{:,.0f}"],
        ["trunks", "{:.2f}"],
    ]
    known = {"n": "the fewest of 2 rounds", "model": "random weights, in the published sizes"}
    segmenter = table("segmenter", f"python -m {cost}", titles, rows, **known)
    return {"speed": {"tables": [bench, traced, host, segmenter], "said": []}}


PROCESSES: Final = ("driver", "raylet", "ledger", "model worker")
SIMULATED: Final = ("-m", "tests.soak.simulated")
BATCHES: Final = (32, 64, 128, 256)
FARM: Final = (64, 256)  # GPUs of `phrasebox plan`'s arithmetic


def scale(own: Photographs) -> Pages:
    """How many model workers one driver feeds, memory and start of long inputs, and what this means for many GPUs."""
    command = f"python {' '.join(SIMULATED)}"
    rows = [
        [
            str(line["workers"]),
            *(line[key] for key in ("batches_per_s", "of_ideal", "images_per_s", "cores")),
            [*(line["core_ms_a_batch"].get(kind) for kind in PROCESSES), sum(line["core_ms_a_batch"].values())],
        ]
        for line in printed(*SIMULATED)
    ]
    columns = [
        "model workers",
        *([title, "{:.2f}"] for title in ("batches/s", "of what they could do")),
        ["images/s", "{:.0f}"],
        ["cores busy with it", "{:.2f}"],
        ["ms of a core for a batch: driver / raylet / ledger / model worker / all", "{:.0f}"],
    ]
    known = {"model": "none, workers that sleep"}
    workers = table("workers", command, columns, rows, **known, settings="1 s a batch of 32 images")
    few = ("--workers", "8", "--seconds", "0.25")
    found = {batch: printed(*SIMULATED, *few, "--batch", str(batch))[0]["core_ms_a_batch"] for batch in BATCHES}
    rows = [
        ["the graph in all", *(sum(each.values()) / batch for batch, each in found.items())],
        ["the driver", *(each["driver"] / batch for batch, each in found.items())],
    ]
    columns = ["ms of a core for an image, by images of a batch", *([str(batch), "{:.2f}"] for batch in BATCHES)]
    batches = table("batches", f"{command} {' '.join(few)} --batch 64", columns, rows, **known)
    measured = printed("-m", "tests.soak.scale", "--out", str(own.out / "scale"))
    longest = [line for line in measured if line["name"] == "memory"][-1]
    rows = [
        [kind, each["own_mb"], each["rss_mb"], each["slope"] and each["slope"]["mb_per_10k_rows"]]
        for kind, each in longest.items()
        if isinstance(each, dict)
    ]
    known = {"model": "a tiny CLIP with random weights"}
    columns = ["process", ["largest, MB of its own", "{:.0f}"], ["MB with what it shares", "{:.0f}"]]
    columns.append(["growth, MB per 10,000 rows", "{:.2f}"])
    n = f"{longest['images']:,} images in batches of 32"
    memory = table("memory", "python -m tests.soak.scale", columns, rows, **known, n=n)
    keys = ("first_shard_s", "first_shard_cpu_s", "resume_s", "resume_cpu_s")
    inputs = {"tars": "10,000 tars of one image", "rows": "a JSON lines file of a million rows"}
    rows = [
        [inputs[line["name"]], *(line[key] for key in keys), line["rss_mb"].get("driver")]
        for line in measured
        if line["name"] in inputs
    ]
    titles = ("s to the first shard", "s of a core", "s of a run that resumes, to its end", "s of a core ")
    columns = ["input", *([title, "{:.0f}"] for title in (*titles, "MB of the driver, with what it shares"))]
    start = table("start", "python -m tests.soak.scale", columns, rows, **known)
    start["settings"] = "the last 1,000 rows are left for the second run"
    return {"scale": {"tables": [workers, batches, memory, start, many_gpus()], "said": []}}


def many_gpus() -> dict[str, Any]:
    """The arithmetic of `phrasebox plan` for 10^9 images on GPUs that have the cores they need."""
    known = {"images": 1, "device": "", "steps": {"explain": 0.0, "others": 1e-9}, "explain": "explain"}
    costs = Costs(**{each.name: 0 for each in fields(Costs)} | known)  # type: ignore[arg-type]
    found = [forecast(costs, 10**9, Machine(cores=1, workers=1, gpus=gpus, gpu_rate=1000.0)) for gpus in FARM]
    rows: list[list[Any]] = [
        ["images/s of the cluster, if no driver ends it", *(each.rate for each in found)],
        ["drivers, each with a part and a cluster of its own, at once", *(each.side_by_side for each in found)],
        ["parts", *(each.parts for each in found)],
        ["hours of a part / of all", *(f"{each.part_hours:.2f} / {each.seconds / 3600:.1f}" for each in found)],
    ]
    command = "phrasebox plan my.yaml --total 1000000000 --cores 4096 --gpus 64 --gpu-rate 1000"
    columns = ["", *([f"{gpus} GPUs", "{:,.0f}"] for gpus in FARM)]
    return table("gpus", command, columns, rows, settings="arithmetic, no measurement")


def printed(*arguments: str) -> list[dict[str, Any]]:
    """Return the JSON lines that a program of this repository prints. Ends if it fails."""
    return [json.loads(line) for line in called(*arguments).splitlines()]


def called(*arguments: str) -> str:
    """Return what a program of this repository prints to standard output. Ends if it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: exit code {done.returncode}")
    return done.stdout


STEPS: Final[dict[str, Callable[[Photographs], Pages]]] = {
    each.__name__: each
    for each in (drawings, photographs, absent, tune, settings, sources, explainers, reviews, proof, speed, scale)
}


NOT_MADE: Final = {
    "explainers": ("scenes-earlier", "photographs-earlier", "single-head"),
    "photographs": ("absent-others",),
    "proof": ("interpolated",),
    "settings": ("scores",),
    "speed": ("whole-run",),
}
"""Page -> tables that no step makes yet."""


def commit() -> str:
    """Return the commit that the code is of, with a + if files differ from it."""
    said = [
        subprocess.run(["git", *call], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        for call in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "pipeline", "stages", "tests"])
    ]
    return said[0] + "+" * bool(said[1])


def make(photos: Path, out: Path, only: Sequence[str]) -> None:
    """Make the figures of all steps, or of those that are named, and write them beside the pages.

    A step that is finished is not repeated: `OUT/steps/NAME.json` holds what it made.
    """
    own = Photographs(photos, out.resolve())
    for name in only or STEPS:
        done = out / "steps" / f"{name}.json"
        if done.is_file():
            console.print(f"{name} is finished; remove {done} to make it again", soft_wrap=True)
            continue
        known = {"step": name, "commit": commit()}
        pages = STEPS[name](own)
        for page, parts in pages.items():
            for entry in (*parts["tables"], *parts["said"]):
                entry.update(known)
            put(page, tables=parts["tables"], said=parts["said"])
        done.parent.mkdir(parents=True, exist_ok=True)
        done.write_text(json.dumps(pages), encoding="utf-8")
