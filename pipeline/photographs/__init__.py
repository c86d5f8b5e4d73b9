"""Eight photographs that come with phrasebox, with captions and hand-made ground truth; `LICENCES.md` names sources.

`FOLDER` is an input for a run and a ground truth for an evaluation:

    captions.jsonl  {"id", "image", "caption"} of each photograph
    truth.json      COCO instances with phrases: the things that 31 phrases of the captions name, as boxes, and as
                    outlines where a box would hold much else
    *.jpg           480 px or less on the longer side

The things of 23 phrases leave the centre of the image free, so that a model that always points
there is found out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from stages.contract.errors import WeightsError
from stages.shared.model.catalog import find_weights

FOLDER: Final = Path(__file__).parent

CAPTIONS: Final = FOLDER / "captions.jsonl"

TRUTH: Final = FOLDER / "truth.json"

INPUT: Final = {"kind": "jsonl", "path": str(CAPTIONS), "image_root": str(FOLDER)}
"""The `input` section of a run over them."""

MODEL: Final = "photo"
"""The model for photographs. Its weights are in the repository and not in the package."""


def why_left_out(model: str = MODEL) -> str | None:
    """Say why a bundled model cannot take part with the photographs; None if it can."""
    try:
        find_weights(model)
    except WeightsError as error:
        return f"the eight photographs are left out: {error}"
    return None
