"""The step of the page on photographs that measures presence, on photographs and on scenes."""

from __future__ import annotations

from typing import Final

from benchmarks.figures.cells import DEV, DRAWN, PHOTO, SCENES, cells
from benchmarks.figures.pages import Pages, table
from benchmarks.photos.measure import Photographs
from benchmarks.photos.reviews import UNANNOTATED
from phrasebox.pipeline.commands.tables import ABSENT_ROWS

ABSENT_WAYS: Final = {
    "presence": "presence of the phrase",
    "presence_of_group": "shared by an object's texts",
    "z_score": "z-score of the cosine",
    "similarity": "cosine",
    "saco": "SA-Co's rule, score of 0.5 or more",
}


def absent(photos: Photographs) -> Pages:
    """Presence of phrases that are not in the image, on photographs and scenes."""
    fitted = photos.figures("flickr8k/dev", "photo", "photos", file=PHOTO, absent=True)
    unannotated = photos.figures("flickr8k/dev", "photo", "captions", *UNANNOTATED, file=PHOTO, absent=True)
    scenes = photos.figures(DRAWN, "demo", "demo", absent=True)
    columns = [
        (f"{images}{title}", figures if way == "saco" else figures["by"][way] or {})
        for images, figures, ways in (
            ("photographs: ", fitted, ABSENT_WAYS),
            ("photographs, without annotations: ", unannotated, {"presence": "presence"}),
            ("scenes: ", scenes, {"presence": "presence", "similarity": "cosine"}),
        )
        for way, title in ways.items()
    ]
    shown = [figures.get("saco", figures) for _, figures in columns]
    rows = [
        [label, *(cells(figures, [name])[0] for figures in shown)] for name, label in ABSENT_ROWS.items()
    ]
    for label, name in (("calibration error of `score`", "ece"), ("of present phrases", "ece_there")):
        rows.append([label, *(cells(figures, [name])[0] for _, figures in columns)])
    rows = [row for row in rows if any(row[1:])]
    kept_shares = [
        [
            f"{here['presence']:g}",
            *(100 * each[kind] for each in (here, there) for kind in ("present", "absent")),
        ]
        for here, there in zip(fitted["shares"], scenes["shares"], strict=True)
    ]
    of = ("photographs: kept of present phrases", "of absent ones", "scenes: kept", "of absent ones")
    counts = [(figures["counts"]["images"], figures["pairs"]) for figures in (fitted, scenes)]
    n = "; ".join(
        f"{images:,} images, {pairs['there']:,} present phrases, {pairs['random']:,} absent"
        for images, pairs in counts
    )
    origin = {"n": n, "split": f"{DEV['split']}; {SCENES['split']}", "model": "photo; demo"}
    command = "phrasebox eval out/photos --truth dev.entities.tar.gz --absent"
    titles = ["`regions.min_presence`", *([title, "{:.1f} %"] for title in of)]
    tables = [
        table(
            "absent",
            command,
            ["", *(title for title, _ in columns)],
            rows,
            **origin,
            settings="absent_share 0.5",
        ),
        table("min-presence", command, titles, kept_shares, **origin),
    ]
    return {"photographs": {"tables": tables, "said": []}}
