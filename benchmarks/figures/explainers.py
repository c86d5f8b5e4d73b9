"""The step of the page on explainers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from benchmarks.figures.cells import BOXES, numbers_of
from benchmarks.figures.pages import Pages, table
from benchmarks.photos.measure import Photographs, console
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.research.compare.comparison import compare_explainers
from phrasebox.pipeline.research.compare.figures import FIGURES, SANITY
from phrasebox.pipeline.research.compare.maps import contenders_of
from phrasebox.pipeline.research.compare.pictures import Source

RISE: Final = ("deletion_rise", "insertion_rise")
CURVED: Final = (*RISE, *(f"{name}_cosine" for name in RISE))
PLACED: Final = ("pointing", "energy", "box_recall", "box_recall_otsu", "mask_iou")
PLACES: Final = ("pointing", "pointing_off_centre", *PLACED[1:4])
SANE: Final = ("weights_all", "phrase_swapped")
PAIRS: Final = ("same_thing", "other_thing")
PATENTED: Final = "grad_eclip,lrp,clrp,sg_lrp"
PERTURBED: Final = (
    "grad_eclip,rise:masks={0},occlusion,partition_shap:max_evaluations={0},score_cam:channels={1},m2ib"
)
ONE_HEAD: Final = "grad_eclip:heads=single"
CHEAP: Final = {
    "demo": ",".join(each.label for each in contenders_of(None, "class_token", "demo")),
    "photo": ",".join(each.label for each in contenders_of(None, "attention_pool", "photo")),
}
EXPLAINED: Final = {
    "scenes": (
        "demo",
        f"{CHEAP['demo']},grad_eclip:blocks=1,{ONE_HEAD}:blocks=1",
        200,
        200,
        (*PLACED, *CURVED, *SANE),
    ),
    "photographs": ("photo", f"{CHEAP['photo']},{ONE_HEAD}", 100, 100, (*PLACES, *CURVED, *SANE, *PAIRS)),
    "all-photographs": ("photo", f"grad_eclip,attention_gradient,maskclip,{ONE_HEAD}", 1000, 0, PLACES),
    "patented-scenes": ("demo", f"{PATENTED},transformer_interpretability", 200, 0, (*PLACED, *SANE)),
    "patented-photographs": ("photo", PATENTED, 100, 0, (*PLACES, *SANE)),
    "perturbation-scenes": ("demo", f"{PERTURBED.format(256, 128)},attention_flow", 24, 0, PLACED),
    "perturbation-photographs": ("photo", PERTURBED.format(128, 64), 12, 0, PLACES),
}
"""Table -> model, explainers, images, images of insertion and deletion, and figures."""
CLOSE: Final = {
    "scenes": ("game", "legrad"),
    "all-photographs": ("attention_gradient", "maskclip", ONE_HEAD),
    "patented-scenes": ("clrp",),
}
"""Table -> explainers whose differences stand in sentences."""


def explainers(photos: Photographs) -> Pages:
    """Explainers beside Grad-ECLIP; a comparison that is there is not made again."""
    tables, sentences = list[dict[str, Any]](), list[dict[str, Any]]()
    for name, (model, kinds, images, curves, figures) in EXPLAINED.items():
        path = photos.out / "compared" / f"{name}.json"
        pictures = "flickr8k/dev" if model == "photo" else "scenes/0/200"
        if not path.is_file():
            config = load_config(None, photos.settings(pictures, model))
            source = Source(name=pictures, config=config, truth=photos.truth(pictures), most=images)
            comparison = compare_explainers(source, kinds, console, curve_images=curves)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(comparison.to_json()), encoding="utf-8")
        rows = json.loads(path.read_text("utf-8"))
        counts = rows[0]["counts"]
        lines = [
            [
                f"*{row['explainer']}*" if row["baseline"] else f"`{row['explainer']}`",
                *(_marked(row, figure) for figure in figures),
                row["cost"]["encode_image"] if "cost" in row else None,
            ]
            for row in rows
        ]
        sizes = [
            sorted({row["figures"][name]["n"] for row in rows if name in row["figures"]})
            for name in figures
        ]
        lines.append(["n", *(", ".join(f"{n:,}" for n in numbers) for numbers in sizes), None])
        titles = ["explainer", *(FIGURES[figure].title for figure in figures), ["cost", "{:.1f}x"]]
        n = f"{counts['images']:,} images, {counts['phrases']:,} phrases"
        split = "Flickr8k dev" if model == "photo" else "synthetic scenes, series 0"
        command = (
            f"phrasebox compare {pictures} --model {model} --limit {images} --faithful {curves} --json"
        )
        command += f" --explainers {kinds}"
        tables.append(table(name, command, titles, lines, n=n, split=split, model=model))
        for row in rows:
            beside = row["explainer"]
            if beside.startswith(ONE_HEAD):
                agreed = row["cosine_agreement"]
                values = [agreed["correlation"], agreed["mean_distance"]]
                about = f"{name}, {beside}: correlation of its cosine with the model's own, mean distance"
                sentences.append({"about": about, "command": command, "values": values})
            if beside in CLOSE.get(name, ()):
                values = [number for each in BOXES for number in numbers_of(row["differences"][each])]
                about = f"{name}, {beside} over grad_eclip: {', '.join(BOXES)}"
                sentences.append({"about": about, "command": command, "values": values})
    return {"explainers": {"tables": tables, "said": sentences}}


def _marked(row: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """A cell with + or - where the figure differs from Grad-ECLIP's by more than chance, over all marks.

    Checks of few images have their interval, too.
    """
    if name not in row["figures"]:
        return None
    shown = ("value", "low", "high") if name in SANITY else ("value",)
    cell = {key: row["figures"][name][key] for key in shown}
    difference = row["differences"].get(name, {})
    if difference.get("mark"):
        cell["mark"] = difference["mark"]
    return cell
