"""STEP 2: one heat map per phrase. EXPLAINERS: kind -> class."""

from __future__ import annotations

from stages.explain.base import Explainer
from stages.explain.grad_eclip import GradEclip

EXPLAINERS: dict[str, type[Explainer]] = {
    "grad_eclip": GradEclip,
}

__all__ = ["EXPLAINERS", "Explainer"]
