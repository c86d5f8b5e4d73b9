"""Step 4: one heat map per phrase.

docs/how-to/extend.md says how to add an explainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, SerializeAsAny

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.kinds import KindTable
from phrasebox.stages.explain.config import ExplainerConfig, GradEclipConfig
from phrasebox.stages.model.config import TOWER_WORDS

if TYPE_CHECKING:
    from phrasebox.stages.explain.base import Explainer
    from phrasebox.stages.model.config import TowerKind

ConfigT = TypeVar("ConfigT", bound=ExplainerConfig)

EXPLAINERS: Final[KindTable[Explainer[Any]]] = KindTable("phrasebox.explainers", default=GradEclipConfig)
"""The explainers. `config` makes the `explain` section of a run."""


def kinds_for(tower: TowerKind) -> list[str]:
    """Return the kinds of explainers that are defined on a kind of tower and that load, in the order of the table."""
    return [kind for kind, explainer in EXPLAINERS.load_all()[0].items() if tower in explainer.towers]


def fit_to_tower(explainer: type[Explainer[Any]], config: ConfigT, tower: TowerKind, model: str) -> ConfigT:
    """Return the settings of an explainer for a kind of tower, see `ExplainerConfig.for_tower`.

    Raise ConfigError, which names `model` and the kinds that fit it, if the explainer or a setting does not.
    """
    if tower not in explainer.towers:
        kinds = kinds_for(tower)
        instead = f"use explain.kind={' or '.join(kinds)} for it" if kinds else "no explainer is"
        raise ConfigError(
            f"{config.kind} needs {explainer.needs}, and {model} has "
            f"{TOWER_WORDS[tower]}; {instead}. phrasebox models lists what fits which model",
            key="explain.kind",
        )
    return config.for_tower(tower)


AnyExplainerConfig = Annotated[SerializeAsAny[ExplainerConfig], BeforeValidator(EXPLAINERS.config)]
"""The `explain` section of a run."""
