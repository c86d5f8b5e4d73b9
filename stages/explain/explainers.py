"""EXPLAINERS: kind -> class. In a module of its own, since it imports torch and the configuration must not."""

from __future__ import annotations

from stages.explain.base import Explainer
from stages.explain.grad_eclip import GradEclip

EXPLAINERS: dict[str, type[Explainer]] = {
    "grad_eclip": GradEclip,
}
