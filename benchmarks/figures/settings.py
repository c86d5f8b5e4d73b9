"""The step of the tables of settings: each row is a run with other settings, measured on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.figures.cells import cells, n_of
from benchmarks.figures.pages import Pages, table
from benchmarks.photos.measure import Photographs

Row = tuple[str, str]  # label, and settings with spaces between them

UNGUIDED: Final = "regions.upsample=linear regions.rule=otsu"
GUIDED: Final = "regions.upsample=guided regions.rule=fixed regions.threshold="
GRABCUT: Final = "regions.refine=grabcut"
SPREAD: Final = "explain.affinity=propagation explain.affinity_depth=0.33 explain.affinity_reach="
BLOCKS: Final = "explain.blocks="
BLUR: Final = "regions.smooth_patches="
THINGS: Final = "regions.group=things regions.rule=fixed regions.threshold=0.5"
DENSE: Final = "explain.kind=maskclip explain.contrast=0"
SHARES: Final = (0.15, 0.2, 0.25, 0.3, 0.4)
OF_DRAWINGS: Final = "explain.contrast=0.25 regions.smooth_patches=0.5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table: its images and model, the settings of all rows, and the rows, whose own settings come last."""

    page: str
    name: str
    title: str  # of the first column
    images: str  # as `Photographs` names them
    model: str
    columns: tuple[str, ...]  # figures of `phrasebox eval`
    common: str
    rows: tuple[Row, ...]
    origin: dict[str, str]  # images, as they are called, and split


SCENES: Final = {"images": "scenes", "split": "synthetic scenes, series 777"}
OF_SCENES: Final = ("pointing", "box_recall", "box_iou", "mask_iou")
BASE: Final = f"regions.calibration=none explain.affinity=none {UNGUIDED}"


def _of_scenes(name: str, title: str, common: str, *rows: Row) -> Grid:
    images, model, common = "scenes/777/250", "demo", f"{BASE} {common}"
    arguments = {
        "page": "settings",
        "name": name,
        "title": title,
        "images": images,
        "model": model,
        "common": common,
    }
    return Grid(**arguments, columns=OF_SCENES, rows=rows, origin=SCENES)


GRIDS: Final = (
    _of_scenes(
        "heat-maps",
        "heat map",
        f"explain.contrast=0 {BLUR}0",
        ("1 block", f"{BLOCKS}1"),
        ("**4 blocks**", f"{BLOCKS}4"),
        ("5 blocks", f"{BLOCKS}5"),
    ),
    _of_scenes(
        "regions",
        "regions (4 blocks, no contrast)",
        f"explain.contrast=0 {BLUR}0.5",
        ("no blur", f"{BLUR}0"),
        ("**blur 0.5 patch**", f"{BLUR}0.5"),
        ("blur 0.7 patch", f"{BLUR}0.7"),
        ("blur 0.7, fixed share 0.3", f"{BLUR}0.7 regions.rule=fixed regions.threshold=0.3"),
        ("blur 0.5, GrabCut", GRABCUT),
        ("blur 0.5, guided, fixed share 0.45", f"{GUIDED}0.45"),
    ),
    _of_scenes(
        "contrast",
        "regions (contrast 0.25, blur 0.5 unless said otherwise)",
        OF_DRAWINGS,
        ("interpolated, contour, Otsu", UNGUIDED),
        ("GrabCut", GRABCUT),
        ("guided, Otsu", "regions.upsample=guided"),
        *((f"guided, fixed share {share}", f"{GUIDED}{share}") for share in (0.35, 0.4)),
        ("**guided, fixed share 0.45** (`demo`)", f"{GUIDED}0.45"),
        ("the same with `model.precision: bf16`", f"{GUIDED}0.45 model.precision=bf16"),
        ("guided, fixed share 0.5", f"{GUIDED}0.5"),
        *((f"the same at 0.45, blur {patches}", f"{GUIDED}0.45 {BLUR}{patches}") for patches in (0, 0.7)),
        *(
            (f"guided, fixed share {share}, then GrabCut", f"{GUIDED}{share} {GRABCUT}")
            for share in (0.4, 0.45)
        ),
    ),
    _of_scenes(
        "affinity",
        "affinity (contrast 0.25, blur 0.5, Otsu, contour unless said otherwise)",
        OF_DRAWINGS,
        ("none", UNGUIDED),
        *((f"propagation, reach {reach}", f"{SPREAD}{reach}") for reach in (0.5, 0.65, 0.8)),
        ("reach 0.65, tokens before block 3 instead of 2", f"{SPREAD}0.65 explain.affinity_depth=0.5"),
        ("guided, fixed share 0.45, with propagation", f"{SPREAD}0.65 {GUIDED}0.45"),
        ("GrabCut, with propagation", f"{SPREAD}0.65 {GRABCUT}"),
    ),
    Grid(
        page="photographs",
        name="settings",
        title="",
        images="flickr8k/dev",
        model="photo",
        columns=("pointing", "pointing_off_centre", "box_recall"),
        common=f"input.limit=300 regions.calibration=none regions.group=none {BASE} explain.contrast=0 {BLUR}1.5",
        rows=(
            ("settings of `demo`", OF_DRAWINGS),
            ("settings of `demo`, propagation", f"{OF_DRAWINGS} {SPREAD}0.65"),
            ("Grad-ECLIP", UNGUIDED),
            ("Grad-ECLIP, propagation", f"{SPREAD}0.65"),
            ("Grad-ECLIP, `upsample: guided`", "regions.upsample=guided"),
            ("`explain.kind: maskclip`", DENSE),
            ("maskclip, propagation", f"{DENSE} {SPREAD}0.65"),
            ("maskclip, propagation with a reach of 0.8", f"{DENSE} {SPREAD}0.8"),
            ("the same, guided", f"{DENSE} {SPREAD}0.8 regions.upsample=guided"),
            ("maskclip, objects share their regions, fixed share 0.5", f"{DENSE} {THINGS}"),
            ("the same, propagation", f"{DENSE} {THINGS} {SPREAD}0.65"),
        ),
        origin={"images": "photographs", "split": "Flickr8k dev, the first 300"},
    ),
    Grid(
        page="photographs",
        name="shares",
        title="cut",
        images="flickr8k/train",
        model="photo",
        columns=("box_recall", "box_iou"),
        common="input.limit=200 regions.calibration=none",
        rows=(
            *((rule, f"regions.rule={rule}") for rule in ("mean", "otsu")),
            *((f"fixed {share}", f"regions.rule=fixed regions.threshold={share}") for share in SHARES),
        ),
        origin={"images": "photographs", "split": "Flickr8k train, the first 200 of the last 500"},
    ),
)


def settings(photos: Photographs) -> Pages:
    """Rows with other settings each, on scenes and photographs."""
    pages: Pages = {grid.page: {"tables": [], "said": []} for grid in GRIDS}
    for grid in GRIDS:
        rows = []
        for number, (label, changes) in enumerate(grid.rows):
            name = f"{grid.page}-{grid.name}-{number}"
            evaluation = photos.figures(
                grid.images, grid.model, name, *grid.common.split(), *changes.split()
            )
            rows.append([label, *cells(evaluation["metrics"], grid.columns)])
        columns = [grid.title, *(name.replace("_", " ").replace("iou", "IoU") for name in grid.columns)]
        command = f"python -m benchmarks.figures --only settings: phrasebox run with {grid.common}"
        made = table(
            grid.name,
            command,
            columns,
            rows,
            n=n_of(evaluation, grid.origin["images"]),
            split=grid.origin["split"],
            model=grid.model,
        )
        pages[grid.page]["tables"].append(made)
    return pages
