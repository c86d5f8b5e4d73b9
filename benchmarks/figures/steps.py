"""The steps of `make figures`. Each returns tables and figures for pages; finished parts are not made again."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.figures.pages import ROOT, Pages, put, table
from benchmarks.figures.settings import GRIDS
from benchmarks.figures.speed import called, scale, speed
from benchmarks.photos.measure import Photographs, console
from benchmarks.photos.reviews import UNANNOTATED, reviewed
from pipeline.commands.tables import ABSENT_ROWS
from pipeline.config import load_config
from pipeline.config_text import dump_yaml
from pipeline.evaluate.evaluation import evaluate_dataset
from pipeline.evaluate.evaluation_set import open_evaluation_set
from pipeline.paths import write_file
from pipeline.research.compare.comparison import compare_explainers
from pipeline.research.compare.figures import FIGURES, SANITY
from pipeline.research.compare.maps import contenders_of
from pipeline.research.compare.pictures import SampleSize, Source
from pipeline.research.tune.session import tune_settings
from pipeline.research.tune.trials import TuningSession

DEV: Final = {"split": "Flickr8k dev", "model": "photo"}
SCENES: Final = {"split": "synthetic scenes, series 4242", "model": "demo"}
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


def cells(figures: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """Return the cells of figures by name, with their intervals; null where there is none."""
    found = [figures.get(name) for name in names]
    return [each and {key: each[key] for key in ("value", "low", "high")} for each in found]


def numbers_of(figure: Mapping[str, Any]) -> list[float]:
    """Return a figure and its interval."""
    return [figure[key] for key in ("value", "low", "high")]


def n_of(found: Mapping[str, Any], images: str) -> str:
    """Return how many images, by this name, and phrases an evaluation has."""
    return f"{found['counts']['images']:,} {images}, {found['counts']['targets']:,} phrases"


def drawings(own: Photographs) -> Pages:
    """Regions and scores of the model `demo` on 500 synthetic scenes."""
    names = ("pointing", "box_recall", "box_iou", "mask_iou")
    columns = ("", "pointing", "box recall (ANY) at IoU 0.5", "mean box IoU", "mask IoU")
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
        ("phrases for one object", groups["number"]["singular"]),
        ("phrases for several", groups["number"]["plural"]),
        ("pairs of colour and kind never shown in training", groups["combination"]["unseen"]),
        ("objects below 32 x 32 px", groups["size"]["small"]),
    ):
        rows.append([f"{label} ({members['pointing']['n']:,})", *cells(members, names)])
    for number, (label, settings) in enumerate(others.items()):
        rows.append([label, *cells(own.figures(DRAWN, "demo", f"demo-{number}", *settings)["metrics"], names)])
    for label, name in (("centre of the image", "centre"), ("random", "chance")):
        rows.append([label, *cells(found["metrics"], [name]), None, None, None])
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
            "values": numbers_of(found["calibration_error"]),
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
    drawn = "`model.name: demo`, trained on synthetic scenes, Otsu's rule"
    rows = [[drawn, "none", *cells(own.figures(dev, "demo", "demo", *PLAIN)["metrics"], [*WHERE])]]
    of_drawings = "`photo`, settings of `demo`: contrast 0.25, no affinity, blur 0.5, Otsu's rule"
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
    fine = own.figures(dev, "photo", "photos-fine", file=FINE)
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
                *numbers_of(found["calibration_error"]),
                *numbers_of(found["calibration_error_plain"]),
                *(half["precision"], half["kept"]),
            ],
        }
        for file, found in ((PHOTO, default), (FINE, fine))
        for half in found["thresholds"]
        if half["score"] == 0.5
    ]
    for label, other, names in GAINS:
        gains = own.gains(dev, label, other, names)
        said.append({"about": f"{label} over {other}: {', '.join(names)}", "command": command, "values": gains})
    texts = [name for name in default["metrics"] if name.endswith("_above_text")]
    values = [number for name in texts for number in numbers_of(default["metrics"][name])]
    said.append({"about": f"defaults: {', '.join(texts)}", "command": command, "values": values})
    said += [{**each, "command": command} for each in in_no_table(own, default)]
    said += coco(own)
    return {"photographs": {"tables": tables, "said": said}}


def in_no_table(own: Photographs, default: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return figures of the evaluation of the defaults that stand in sentences alone."""
    counts, metrics = default["counts"], default["metrics"]
    fitted_to_train = own.figures("flickr8k/dev", "photo", "photos", file=PHOTO, usual="flickr8k/train")["metrics"]
    names = ("text_box", "text_box_merged", "text_point", "text_point_off_centre", "box_recall_above_text")
    return [
        {"about": about, "values": values}
        for about, values in (
            ("pointing above the centre's", [metrics["pointing"]["value"] - metrics["centre"]["value"]]),
            ("share of human phrases that are none of ours", [counts["targets_not_among_phrases"] / counts["targets"]]),
            (
                "links between phrases: F1 of pairs, B-cubed F1",
                [*numbers_of(default["group_f1"]), *numbers_of(default["group_b_cubed"])],
            ),
            (
                f"text alone, fitted to the 500 photographs of train: {', '.join(names)}",
                [number for name in names for number in numbers_of(fitted_to_train[name])],
            ),
        )
    ]


BOXES: Final = ("box_recall", "pointing")
GAINS: Final = (
    ("photos", "alone", BOXES[:1]),
    ("photos", "mean", BOXES[:1]),
    ("alone", "mean", BOXES[:1]),
    ("photos-fine", "photos", BOXES),
    ("alone", "drawings", BOXES),
    ("drawings", "apart", BOXES),
)
"""Datasets of dev by their labels, and the figures by which the first is compared with the second."""


def coco(own: Photographs) -> list[dict[str, Any]]:
    """The defaults and the settings of `demo` on photographs of COCO, which show other things."""
    default = own.figures("coco", "photo", "photos", file=PHOTO)
    drawings = own.figures("coco", "photo", "drawings", *OF_DRAWINGS, file=PHOTO)
    about = f"{default['counts']['images']} photographs of COCO, {default['counts']['targets']} phrases"
    answers = ("pointing", "box_recall")
    found = [number for each in (default, drawings) for name in answers for number in numbers_of(each["metrics"][name])]
    gains = own.gains("coco", "photos", "drawings", answers)
    command = "phrasebox run captions.json --images images/ --model photo; phrasebox eval --truth instances.json"
    return [
        {"about": f"{about}: {what}", "command": command, "values": values}
        for what, values in (
            ("calibration error of score", numbers_of(default["calibration_error"])),
            ("pointing and box recall by default, with the settings of `demo`", found),
            ("pointing of the centre", numbers_of(default["metrics"]["centre"])),
            ("defaults over the settings of `demo`: pointing, box recall", gains),
        )
    ]


ABSENT_WAYS: Final = {
    "presence": "presence of the phrase",
    "presence_of_group": "shared by an object's texts",
    "z_score": "z-score of the cosine",
    "similarity": "cosine",
    "saco": "SA-Co's rule, score of 0.5 or more",
}


def absent(own: Photographs) -> Pages:
    """Presence of phrases that are not in the image, on photographs and scenes."""
    photos = own.figures("flickr8k/dev", "photo", "photos", file=PHOTO, absent=True)
    alone = own.figures("flickr8k/dev", "photo", "captions", *UNANNOTATED, file=PHOTO, absent=True)
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
    for label, name in (("calibration error of `score`", "ece"), ("of present phrases", "ece_there")):
        rows.append([label, *(cells(found, [name])[0] for _, found in columns)])
    rows = [row for row in rows if any(row[1:])]
    kept = [
        [f"{here['presence']:g}", *(100 * each[kind] for each in (here, there) for kind in ("there", "absent"))]
        for here, there in zip(photos["kept"], scenes["kept"], strict=True)
    ]
    of = ("photographs: kept of present phrases", "of absent ones", "scenes: kept", "of absent ones")
    counts = [(found["counts"]["images"], found["pairs"]) for found in (photos, scenes)]
    n = "; ".join(
        f"{images:,} images, {pairs['there']:,} present phrases, {pairs['random']:,} absent" for images, pairs in counts
    )
    known = {"n": n, "split": f"{DEV['split']}; {SCENES['split']}", "model": "photo; demo"}
    command = "phrasebox eval out/photos --truth dev.entities.tar.gz --absent"
    titles = ["`regions.min_presence`", *([title, "{:.1f} %"] for title in of)]
    tables = [
        table("absent", command, ["", *(title for title, _ in columns)], rows, **known, settings="absent_share 0.5"),
        table("min-presence", command, titles, kept, **known),
    ]
    return {"photographs": {"tables": tables, "said": []}}


TUNED_ON: Final = 300


def tune(own: Photographs) -> Pages:
    """Settings that `phrasebox tune` finds on photographs of train, measured on dev, which it did not see."""
    train, dev, file = "flickr8k/train", "flickr8k/dev", own.out / "tuned.yaml"
    made = own.dataset(train, "photo", "photos", WITHOUT, file=PHOTO)
    judged = open_evaluation_set(made, own.truth(train), resized=True)
    found = tune_settings(TuningSession(evaluation_set=judged, console=console), most=TUNED_ON).to_json()
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
    columns = ("", "pointing", "off the centre", "box recall", "mean box IoU", "gain in box IoU")
    command = f"phrasebox tune out/train --truth train.entities.tar.gz --resized --limit {TUNED_ON} --out tuned.yaml"
    tables = [table("tuned", command, columns, rows, **known)]
    write_file("out", file, dump_yaml(found["settings"]))
    fit = own.dataset(train, "photo", "tuned", WITHOUT, file=file)
    calibration = own.out / "tuned.json"
    if not calibration.is_file():
        truth = ("--truth", str(own.truth(train)), "--resized")
        called("-m", "pipeline", "calibrate", str(fit), *truth, "--out", str(calibration))
    for label, preset in (("photos", PHOTO), ("photos-fine", FINE)):
        own.dataset(dev, "photo", label, file=preset)
    figures = own.figures(dev, "photo", "tuned", f"regions.calibration={calibration}", file=file)["metrics"]
    values = [number for name in BOXES for number in numbers_of(figures[name])]
    values += (number for other in ("photos", "photos-fine") for number in own.gains(dev, "tuned", other, BOXES))
    about = (
        f"settings of tune with a calibration of their own, dev, and over photos and photos-fine: {', '.join(BOXES)}"
    )
    return {"photographs": {"tables": tables, "said": [{"about": about, "command": command, "values": values}]}}


def settings(own: Photographs) -> Pages:
    """Rows with other settings each, on scenes and photographs."""
    pages: Pages = {grid.page: {"tables": [], "said": []} for grid in GRIDS}
    for grid in GRIDS:
        rows = []
        for number, (label, changes) in enumerate(grid.rows):
            name = f"{grid.page}-{grid.name}-{number}"
            found = own.figures(grid.images, grid.model, name, *grid.common.split(), *changes.split())
            rows.append([label, *cells(found["metrics"], grid.columns)])
        columns = [grid.title, *(name.replace("_", " ").replace("iou", "IoU") for name in grid.columns)]
        command = f"python -m benchmarks.figures --only settings: phrasebox run with {grid.common}"
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


RISE: Final = ("deletion_rise", "insertion_rise")
CURVED: Final = (*RISE, *(f"{name}_cosine" for name in RISE))
PLACED: Final = ("pointing", "energy", "box_recall", "box_recall_otsu", "mask_iou")
PLACES: Final = ("pointing", "pointing_off_centre", *PLACED[1:4])
SANE: Final = ("weights_all", "phrase_swapped")
PAIRS: Final = ("same_thing", "other_thing")
PATENTED: Final = "grad_eclip,lrp,clrp,sg_lrp"
PERTURBED: Final = "grad_eclip,rise:masks={0},occlusion,partition_shap:max_evaluations={0},score_cam:channels={1},m2ib"
ONE_HEAD: Final = "grad_eclip:heads=single"
CHEAP: Final = {
    "demo": ",".join(each.label for each in contenders_of(None, "class_token", "demo")),
    "photo": ",".join(each.label for each in contenders_of(None, "attention_pool", "photo")),
}
EXPLAINED: Final = {
    "scenes": ("demo", f"{CHEAP['demo']},grad_eclip:blocks=1,{ONE_HEAD}:blocks=1", 200, 200, (*PLACED, *CURVED, *SANE)),
    "photographs": ("photo", f"{CHEAP['photo']},{ONE_HEAD}", 200, 200, (*PLACES, *CURVED, *SANE, *PAIRS)),
    "all-photographs": ("photo", f"grad_eclip,attention_gradient,maskclip,{ONE_HEAD}", 1000, 0, PLACES),
    "patented-scenes": ("demo", f"{PATENTED},transformer_interpretability", 200, 0, (*PLACED, *SANE)),
    "patented-photographs": ("photo", PATENTED, 200, 0, (*PLACES, *SANE)),
    "perturbation-scenes": ("demo", PERTURBED.format(256, 128), 24, 0, PLACED),
    "perturbation-photographs": ("photo", PERTURBED.format(128, 64), 12, 0, PLACES),
}
"""Table -> model, explainers, images, images of insertion and deletion, and figures."""

CLOSE: Final = {
    "scenes": ("game", "legrad"),
    "all-photographs": ("attention_gradient", "maskclip", ONE_HEAD),
    "patented-scenes": ("clrp",),
}
"""Table -> explainers whose differences stand in sentences."""


def explainers(own: Photographs) -> Pages:
    """Explainers beside Grad-ECLIP; a comparison that is there is not made again."""
    tables, said = list[dict[str, Any]](), list[dict[str, Any]]()
    for name, (model, kinds, images, curves, figures) in EXPLAINED.items():
        known = own.out / "compared" / f"{name}.json"
        pictures = "flickr8k/dev" if model == "photo" else "scenes/0/200"
        if not known.is_file():
            config = load_config(None, own.settings(pictures, model))
            source = Source(name=pictures, config=config, truth=own.truth(pictures))
            sample_size = SampleSize(images=images, phrases=8, curve_images=curves, seed=0)
            found = compare_explainers(source, kinds, sample_size, console)
            known.parent.mkdir(parents=True, exist_ok=True)
            known.write_text(json.dumps(found.to_json()), encoding="utf-8")
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
        sizes = [sorted({row["figures"][name]["n"] for row in rows if name in row["figures"]}) for name in figures]
        lines.append(["n", *(", ".join(f"{n:,}" for n in numbers) for numbers in sizes), None])
        titles = ["explainer", *(FIGURES[figure].title for figure in figures), ["cost", "{:.1f}x"]]
        n = f"{counts['images']:,} images, {counts['phrases']:,} phrases"
        split = "Flickr8k dev" if model == "photo" else "synthetic scenes, series 0"
        command = f"phrasebox compare {pictures} --model {model} --limit {images} --faithful {curves} --json"
        command += f" --explainers {kinds}"
        tables.append(table(name, command, titles, lines, n=n, split=split, model=model))
        for row in rows:
            beside = row["explainer"]
            if beside.startswith(ONE_HEAD):
                agreed = row["cosine_agreement"]
                values = [agreed["correlation"], agreed["mean_distance"]]
                about = f"{name}, {beside}: correlation of its cosine with the model's own, mean distance"
                said.append({"about": about, "command": command, "values": values})
            if beside in CLOSE.get(name, ()):
                values = [number for each in BOXES for number in numbers_of(row["differences"][each])]
                about = f"{name}, {beside} over grad_eclip: {', '.join(BOXES)}"
                said.append({"about": about, "command": command, "values": values})
    return {"explainers": {"tables": tables, "said": said}}


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
    command = "python -m benchmarks.figures --only reviews"
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
            found = evaluate_dataset(open_evaluation_set(made, own.truth(images)), console, []).to_json()["metrics"]
            row += [count, *json.loads(known.read_text("utf-8")), regions / count, *cells(found, ["box_recall"])]
        rows.append(row)
    titles = (["images", "{:,.0f}"], ["s of a core", "{:.2f}"], ["bytes", "{:,.0f}"], ["regions", "{:.1f}"])
    columns: list[Any] = ["source"]
    for images in ("scenes", "photographs"):
        columns += [*([f"{images}: {title}", how] for title, how in titles), f"{images}: box recall, ANY"]
    command = "phrasebox run ... --set source.kind=grid --set source.by=roi; phrasebox eval --no-maps"
    known_of_all = {"split": "synthetic scenes, series 77; Flickr8k dev", "model": "demo; photo"}
    made_table = table("sources", command, columns, rows, n="seconds and bytes of an image", **known_of_all)
    return {"sources": {"tables": [made_table], "said": []}}


STEPS: Final[dict[str, Callable[[Photographs], Pages]]] = {
    each.__name__: each
    for each in (drawings, photographs, absent, tune, settings, sources, explainers, reviews, proof, speed, scale)
}


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
