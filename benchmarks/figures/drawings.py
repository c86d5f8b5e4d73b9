"""The step of the page on synthetic scenes."""

from __future__ import annotations

from typing import Final

from benchmarks.figures.cells import DRAWN, SCENES, WITHOUT, cells, n_of, numbers_of
from benchmarks.figures.pages import Pages, table
from benchmarks.photos.measure import Photographs

PLAIN: Final = ("regions.upsample=linear", "regions.rule=otsu")


def drawings(photos: Photographs) -> Pages:
    """Regions and scores of the model `demo` on 500 synthetic scenes."""
    names = ("pointing", "box_recall", "box_iou", "mask_iou")
    columns = ("", "pointing", "box recall (ANY) at IoU 0.5", "mean box IoU", "mask IoU")
    evaluation = photos.figures(DRAWN, "demo", "demo", absent=True)
    groups = evaluation["groups"]
    variants = {
        "`regions.upsample=linear`, `regions.rule=otsu`": PLAIN,
        "the same and `regions.refine: grabcut`": (*PLAIN, "regions.refine=grabcut"),
        "plain Grad-ECLIP: last block, threshold at the mean": (
            *(
                "explain.blocks=1",
                "explain.contrast=0",
                "explain.affinity=none",
                "regions.smooth_patches=0",
            ),
            *("regions.upsample=linear", "regions.rule=mean", "regions.group=none", WITHOUT),
        ),
    }
    rows = [["**the settings that `demo` brings**", *cells(evaluation["metrics"], names)]]
    for label, members in (
        ("phrases for one object", groups["number"]["singular"]),
        ("phrases for several", groups["number"]["plural"]),
        ("pairs of colour and kind never shown in training", groups["combination"]["unseen"]),
        ("objects below 32 x 32 px", groups["size"]["small"]),
    ):
        rows.append([f"{label} ({members['pointing']['n']:,})", *cells(members, names)])
    for number, (label, settings) in enumerate(variants.items()):
        rows.append(
            [label, *cells(photos.figures(DRAWN, "demo", f"demo-{number}", *settings)["metrics"], names)]
        )
    for label, name in (("centre of the image", "centre"), ("random", "chance")):
        rows.append([label, *cells(evaluation["metrics"], [name]), None, None, None])
    thresholds = [each for each in evaluation["thresholds"] if each["score"] in (0.0, 0.5, 0.8, 0.9)]
    shares = [
        [title, *(100 * each[key] for each in thresholds)]
        for title, key in (("kept", "share"), ("right", "precision"))
    ]
    percent = [[f"{each['score']:g}", "{:.0f} %"] for each in thresholds]
    command = "phrasebox eval out/scenes --truth scenes/truth.json --absent"
    scores = evaluation["scores"]
    ranked = [
        number for name in ("score", "mean_heat", "similarity") for number in numbers_of(scores[name])
    ]
    sentences = [
        {
            "about": "calibration error of score, 500 scenes, series 4242",
            "command": command,
            "values": numbers_of(evaluation["calibration_error"]),
        },
        {
            "about": "area under the risk-coverage curve by score, by mean heat, by similarity; the same scenes",
            "command": command,
            "values": ranked,
        },
    ]
    origin = {**SCENES, "n": n_of(evaluation, "scenes")}
    tables = [
        table("regions", command, columns, rows, **origin),
        table(
            "thresholds",
            command,
            ["regions with a score of at least (first row)", *percent],
            shares,
            **origin,
        ),
    ]
    return {"drawings": {"tables": tables, "said": sentences}}
