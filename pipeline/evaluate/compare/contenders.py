"""The explainers of a comparison: `grad_eclip,maskclip,grad_eclip:heads=single:blocks=1`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pipeline.config import ExplainConfig, override
from stages.contract.errors import ConfigError
from stages.explain import EXPLAINERS, fitted, kinds_for
from stages.explain.config import ExplainerConfig
from stages.shared.model.config import TowerKind

ALL: Final = "all"

OPTION: Final = "--explainers"

PLAIN: Final = {"contrast": 0.0, "affinity": "none"}
"""Maps are compared as the methods give them, unless a contender's own settings say otherwise."""

REFERENCE: Final = "grad_eclip"
"""Differences are computed against it, where it takes part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """An explainer with its settings as they are for the model's tower; `label` is as it was typed."""

    label: str
    config: ExplainerConfig

    @property
    def repeats_trunk(self) -> bool:
        """Whether it takes many forward passes for each image."""
        return EXPLAINERS[self.config.kind].cost == "perturbation"

    @property
    def takes_one_image(self) -> bool:
        """Whether its images do not share a forward pass."""
        return self.repeats_trunk or self.config.image_size == "keep"


def contenders_of(typed: str | None, tower: TowerKind, model: str) -> list[Contender]:
    """The explainers of a comparison.

    Args:
        typed: Kinds with commas between them, each with its settings behind colons; `all`; or None: those of the tower
            that need no perturbed images and on which nobody claims a patent.
        tower: Kind of the model's image tower.
        model: The model's name, for people.

    Raises:
        ConfigError: A kind or a setting is unknown, or makes no sense on this tower; or one is named twice.
    """
    fitting = kinds_for(tower)
    if typed is None or typed.strip() == ALL:
        return [_contender(kind, tower, model) for kind in fitting if typed is not None or _by_default(kind)]
    names = [name.strip() for name in re.split(r",(?![^\[]*\])", typed)]
    if not all(names):
        raise ConfigError(f"{OPTION}: expected names with commas between them, got {typed!r}")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(f"{OPTION}: {name} is named twice")
    return [_contender(name, tower, model) for name in names]


def _by_default(kind: str) -> bool:
    explainer = EXPLAINERS[kind]
    return explainer.cost != "perturbation" and not explainer.claim


def _contender(label: str, tower: TowerKind, model: str) -> Contender:
    kind, *settings = label.split(":")
    defined = ", ".join(kinds_for(tower))
    if kind not in EXPLAINERS:
        raise ConfigError(f"{OPTION}: no explainer {kind!r}; on {model} these are defined: {defined}")
    if tower not in EXPLAINERS[kind].towers:
        raise ConfigError(
            f"{OPTION}: {kind} needs {EXPLAINERS[kind].needs}, which {model} does not have; on it these are "
            f"defined: {defined}"
        )
    try:
        run = override({"explain": {"kind": kind}}, [f"explain.{setting}" for setting in settings], ExplainConfig)
        own: ExplainerConfig = run.explain
        typed = {setting.partition("=")[0] for setting in settings}
        plain = own.model_copy(update={key: value for key, value in PLAIN.items() if key not in typed})
        return Contender(label=label, config=fitted(plain, tower, model))
    except ConfigError as error:
        raise ConfigError(f"{OPTION}: {label}: {error}") from error
