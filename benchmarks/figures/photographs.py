"""The steps of the page on photographs, but for absent phrases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from benchmarks.figures.cells import BOXES, DEV, FINE, PHOTO, WITHOUT, cells, n_of, numbers_of
from benchmarks.figures.drawings import PLAIN
from benchmarks.figures.pages import Pages, table
from benchmarks.photos.measure import Photographs

OF_DRAWINGS: Final = (
    "explain.contrast=0.25",
    "explain.affinity=none",
    "regions.smooth_patches=0.5",
    "regions.rule=otsu",
    WITHOUT,
)
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
    "the region of another phrase of the image, defaults": (
        ("", "", "other_box", "other_box_merged"),
        "2,000",
    ),
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
FEWER: Final = (1, 2)
"""Numbers of captions of an image, beside all five."""

OF_SCORES: Final = {
    "box_recall": "box recall, ANY",
    "box_recall_merged": "MERGED",
    "error": "calibration error",
    "area": "area under risk-coverage",
}
GAINS: Final = (
    ("photos", "alone", BOXES[:1]),
    ("photos", "mean", BOXES[:1]),
    ("alone", "mean", BOXES[:1]),
    ("photos-fine", "photos", BOXES),
    ("alone", "drawings", BOXES),
    ("drawings", "apart", BOXES),
)
"""Datasets of dev by their labels, and the figures by which the first is compared with the second."""


def photographs(photos: Photographs) -> Pages:
    """Regions of the model `photo` on 1,000 photographs, with several settings, beside answers without a map."""
    dev = "flickr8k/dev"
    drawn = "`model.name: demo`, trained on synthetic scenes, Otsu's rule"
    rows = [[drawn, "none", *cells(photos.figures(dev, "demo", "demo", *PLAIN)["metrics"], [*WHERE])]]
    of_drawings = "`photo`, settings of `demo`: contrast 0.25, no affinity, blur 0.5, Otsu's rule"
    fixed_cut = "`photo`, defaults where no calibration fits: cut at 0.2 of the highest heat"
    for name, label, settings in (
        ("drawings", of_drawings, OF_DRAWINGS),
        (
            "apart",
            "the same with `regions.group: none`, each phrase by itself",
            (*OF_DRAWINGS, "regions.group=none"),
        ),
        ("alone", fixed_cut, (WITHOUT,)),
        ("mean", "the same with `regions.rule: mean`", ("regions.rule=mean", WITHOUT)),
    ):
        evaluation = photos.figures(dev, "photo", name, *settings, file=PHOTO)["metrics"]
        rows.append([label, "none", *cells(evaluation, [*WHERE])])
    default = photos.figures(dev, "photo", "photos", file=PHOTO, absent=True)
    fine = photos.figures(dev, "photo", "photos-fine", file=FINE)
    rows.append(["**`photo`, defaults** (`photos.yaml`)", "2,000", *cells(default["metrics"], [*WHERE])])
    fine_label = "**`photo`, `photos-fine.yaml`**: three sizes of each image"
    rows.append([fine_label, "2,000", *cells(fine["metrics"], [*WHERE])])
    rows += [
        [label, n, *cells(default["metrics"], names), None, None] for label, (names, n) in BESIDE.items()
    ]
    types = default["groups"]["type"]
    order = sorted(types, key=lambda name: -types[name]["pointing"]["n"])
    lines = [[name, types[name]["pointing"]["n"], *cells(types[name], [*BY_TYPE])] for name in order]
    command = "phrasebox eval out/photos --truth dev.entities.tar.gz --absent"
    origin = {**DEV, "n": n_of(default, "photographs")}
    by_type = ["defaults by type", ["phrases", "{:,}"], *BY_TYPE.values()]
    tables = [
        table("regions", command, ["", "annotated images of the fit", *WHERE.values()], rows, **origin),
        table("by-type", command, by_type, lines, **origin, settings=str(PHOTO)),
    ]
    captions = [
        [f"`{file.name}`", number, *_score_cells(evaluation)]
        for file, whole, numbers in ((PHOTO, default, FEWER), (FINE, fine, FEWER[:1]))
        for number, evaluation in (
            *(
                (fewer, photos.figures(dev, "photo", file.stem, file=file, captions=fewer))
                for fewer in numbers
            ),
            (5, whole),
        )
    ]
    titles = [
        *("", ["captions of an image", "{}"], ["phrases", "{:,}"], *OF_SCORES.values()),
        *(["regions with a score of 0.5 or more", "{:.0f} %"], "of these right"),
    ]
    images = f"{default['counts']['images']:,} photographs"
    tables.append(table("captions", command.removesuffix(" --absent"), titles, captions, **DEV, n=images))
    sentences = [
        {
            "about": f"{file.name}: calibration error of score; precision and share from 0.5 on",
            "command": command,
            "values": [
                *numbers_of(evaluation["calibration_error"]),
                *(half["precision"], half["share"]),
            ],
        }
        for file, evaluation in ((PHOTO, default), (FINE, fine))
        for half in evaluation["thresholds"]
        if half["score"] == 0.5
    ]
    for label, other, names in GAINS:
        gains = photos.gains(dev, label, other, names)
        sentences.append(
            {"about": f"{label} over {other}: {', '.join(names)}", "command": command, "values": gains}
        )
    texts = [name for name in default["metrics"] if name.endswith("_above_text")]
    values = [number for name in texts for number in numbers_of(default["metrics"][name])]
    sentences.append({"about": f"defaults: {', '.join(texts)}", "command": command, "values": values})
    sentences += [{**each, "command": command} for each in in_no_table(photos, default)]
    sentences += coco(photos)
    return {"photographs": {"tables": tables, "said": sentences}}


def _score_cells(evaluation: Mapping[str, Any]) -> list[Any]:
    """Return the cells of the table of captions."""
    half = next(line for line in evaluation["thresholds"] if line["score"] == 0.5)
    figures = {
        **evaluation["metrics"],
        "error": evaluation["calibration_error"],
        "area": evaluation["scores"]["score"],
        "precision": half["precision"],
    }
    *first, precision = cells(figures, [*OF_SCORES, "precision"])
    return [evaluation["counts"]["targets"], *first, 100 * half["share"], precision]


def in_no_table(photos: Photographs, default: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return figures of the evaluation of the defaults that stand in sentences alone."""
    counts, metrics = default["counts"], default["metrics"]
    fitted_to_train = photos.figures("flickr8k/dev", "photo", "photos", file=PHOTO, usual="flickr8k/train")[
        "metrics"
    ]
    names = ("text_box", "text_box_merged", "text_point", "text_point_off_centre", "box_recall_above_text")
    return [
        {"about": about, "values": values}
        for about, values in (
            ("pointing above the centre's", [metrics["pointing"]["value"] - metrics["centre"]["value"]]),
            (
                "share of human phrases that are none of ours",
                [counts["targets_not_among_phrases"] / counts["targets"]],
            ),
            (
                "links between phrases: F1 of pairs, B-cubed F1",
                [
                    number
                    for figure in photos.links("flickr8k/dev", "photos")
                    for number in (figure.value, figure.low, figure.high)
                ],
            ),
            (
                f"text alone, fitted to the 500 photographs of train: {', '.join(names)}",
                [number for name in names for number in numbers_of(fitted_to_train[name])],
            ),
        )
    ]


def coco(photos: Photographs) -> list[dict[str, Any]]:
    """The defaults and the settings of `demo` on photographs of COCO, which show other objects."""
    default = photos.figures("coco", "photo", "photos", file=PHOTO)
    drawings = photos.figures("coco", "photo", "drawings", *OF_DRAWINGS, file=PHOTO)
    about = f"{default['counts']['images']} photographs of COCO, {default['counts']['targets']} phrases"
    answers = ("pointing", "box_recall")
    evaluation = [
        number
        for each in (default, drawings)
        for name in answers
        for number in numbers_of(each["metrics"][name])
    ]
    gains = photos.gains("coco", "photos", "drawings", answers)
    command = (
        "phrasebox run captions.json --images images/ --model photo; phrasebox eval --truth instances.json"
    )
    return [
        {"about": f"{about}: {what}", "command": command, "values": values}
        for what, values in (
            ("calibration error of score", numbers_of(default["calibration_error"])),
            ("pointing and box recall by default, with the settings of `demo`", evaluation),
            ("pointing of the centre", numbers_of(default["metrics"]["centre"])),
            ("defaults over the settings of `demo`: pointing, box recall", gains),
        )
    ]
