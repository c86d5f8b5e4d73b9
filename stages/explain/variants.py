"""Presets of Grad-ECLIP, each as the settings in which it differs from the defaults, which our measurements favour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_BOTH: Final = {"heads": "single", "blocks": 1, "path": "full", "image_size": "keep", "contrast": 0.0}

VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "recommended": {},
    "authors": {**_BOTH, "similarity": "projected", "shorter_side_px": 640},
    "notebook": _BOTH,
}
"""authors: `generate_emap.py` of the Grad-ECLIP repository, with which the paper was evaluated. notebook: its
`grad_eclip_image.ipynb`."""
