"""The weights that are known by name. Adding one: put its files into a folder here and add an entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsEntry:
    """A named set of weights.

    Attributes:
        folder: folder inside `stages/model/weights` that holds the files.
        files: file name -> SHA-256 in hex; `model.json` and `model.safetensors` at least.
        licence: SPDX identifier of the weights' licence.
        source: where the weights come from.
    """

    folder: str
    files: dict[str, str]
    licence: str
    source: str


CATALOG: Final[dict[str, WeightsEntry]] = {
    "demo": WeightsEntry(
        folder="demo",
        files={
            "model.json": "31fc2fc42fdaac7daf28bdb499af712be07e83bf2abece640282f460035f74e7",
            "model.safetensors": "38b3709c8800f37dc59c5c812e12ccb967e5425a5651e2891f65e3751e1962ca",
            "bpe_vocab.txt.gz": "6c0a512fbf75a25efb340a462241b9ebdd8d13bcda0d49ef3e94659a1cad8393",
        },
        licence="Apache-2.0",
        source="trained from random weights on drawn scenes by stages.model.train; see demo/MODEL_CARD.md",
    ),
}
"""Name -> entry. The checksums of `demo` are written by `python -m stages.model.train export`."""
