"""Seventeen photographs that come with phrasebox, with captions and ground truth; `LICENCES.md` names sources.

`FOLDER` is an input for a run and a ground truth for an evaluation:

    captions.jsonl  {"id", "image", "captions"} of each photograph, or {..., "caption"}
    truth.json      COCO instances with phrases: where people outlined what a phrase of the captions names
    *.jpg           480 px or less on the longer side

Twelve are photographs of COCO's validation set, with its five captions and its outlines. They were
chosen by licence and content, and no model was asked. Of 93 at hand, 15 are under the plain
Attribution licence. Two of these show children from near, and the captions of one hardly name what
has an outline. The rest is not easy: crowds, small objects, a reflection. The other five have
captions and outlines that were made for phrasebox. They show objects whose names the model `photo`
has learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from phrasebox.stages.contract.errors import WeightsError
from phrasebox.stages.model.catalog import WEIGHTS_ROOT, find_weights

FOLDER: Final = Path(__file__).parent

CAPTIONS: Final = FOLDER / "captions.jsonl"

TRUTH: Final = FOLDER / "truth.json"

INPUT: Final = {"kind": "jsonl", "path": str(CAPTIONS), "image_root": str(FOLDER)}
"""The `input` section of a run over them."""

MODEL: Final = "photo"
"""The model for photographs. Its weights are in the repository and not in the package."""

USUAL_PLACES: Final = WEIGHTS_ROOT / MODEL / "usual-places.json"
"""A `TextOnly` in JSON, fitted to the 500 photographs of the model's calibration. It is beside the
model's weights."""


def why_left_out(model: str) -> str | None:
    """Say why a bundled model cannot take part with the photographs; None if it can."""
    try:
        find_weights(model)
    except WeightsError as error:
        return f"the photographs are left out: {error}"
    return None
