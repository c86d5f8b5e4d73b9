"""Step 4: one heat map per phrase.

To add an explainer, write one file with an `ExplainerConfig` and an `Explainer`, and name it in `EXPLAINERS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, SerializeAsAny

from stages.contract.errors import ConfigError
from stages.contract.kinds import KindTable
from stages.explain.config import ExplainerConfig
from stages.shared.model.config import TOWER_WORDS

if TYPE_CHECKING:
    from stages.explain.base import Explainer
    from stages.shared.model.config import TowerKind

__all__ = ["EXPLAINERS", "AnyExplainerConfig", "fitted", "kinds_for"]

ConfigT = TypeVar("ConfigT", bound=ExplainerConfig)

EXPLAINERS: Final[KindTable[Explainer[Any]]] = KindTable(
    {
        "grad_eclip": "stages.explain.grad_eclip:GradEclip",
        "attention_gradient": "stages.explainers.attention.attention_gradient:AttentionGradient",
        "raw_attention": "stages.explainers.attention.raw_attention:RawAttention",
        "rollout": "stages.explainers.attention.rollout:Rollout",
        "attention_flow": "stages.explainers.attention.attention_flow:AttentionFlow",
        "game": "stages.explainers.attention.game:Game",
        "legrad": "stages.explainers.attention.legrad:LeGrad",
        "cam": "stages.explainers.cams.cam:Cam",
        "grad_cam": "stages.explainers.cams.grad_cam:GradCam",
        "grad_cam_plus_plus": "stages.explainers.cams.grad_cam_plus_plus:GradCamPlusPlus",
        "layer_cam": "stages.explainers.cams.layer_cam:LayerCam",
        "maskclip": "stages.explainers.dense.maskclip:MaskClip",
        "clip_surgery": "stages.explainers.dense.clip_surgery:ClipSurgery",
        "gem": "stages.explainers.dense.gem:Gem",
        "rise": "stages.explainers.perturbation.rise:Rise",
        "occlusion": "stages.explainers.perturbation.occlusion:Occlusion",
        "kernel_shap": "stages.explainers.perturbation.kernel_shap:KernelShap",
        "partition_shap": "stages.explainers.perturbation.partition_shap:PartitionShap",
        "score_cam": "stages.explainers.perturbation.score_cam:ScoreCam",
        "lrp": "stages.explainers.relevance.lrp:Lrp",
        "clrp": "stages.explainers.relevance.clrp:Clrp",
        "sg_lrp": "stages.explainers.relevance.sg_lrp:SgLrp",
        "m2ib": "stages.explainers.m2ib:M2ib",
        "transformer_interpretability": (
            "stages.explainers.relevance.transformer_interpretability:TransformerInterpretability"
        ),
    },
    default="grad_eclip",
)
"""The explainers. `config` makes the `explain` section of a run."""


def kinds_for(tower: TowerKind) -> list[str]:
    """The kinds of explainers that are defined on a kind of tower, in the order of the table."""
    return [kind for kind in EXPLAINERS if tower in EXPLAINERS[kind].towers]


def fitted(config: ConfigT, tower: TowerKind, model: str) -> ConfigT:
    """The settings of an explainer for a kind of tower, see `ExplainerConfig.for_tower`.

    Args:
        config: The settings.
        tower: The kind of the model's image tower.
        model: The model's name, for people.

    Raises:
        ConfigError: The explainer is not defined on such a tower, or a setting makes no sense there; the message says
            what does.
    """
    explainer = EXPLAINERS[config.kind]
    if tower not in explainer.towers:
        others = kinds_for(tower)
        instead = f"use explain.kind={' or '.join(others)} for it" if others else "no explainer is"
        raise ConfigError(
            f"explain.kind: {config.kind} needs {explainer.needs}, and {model} has "
            f"{TOWER_WORDS[tower]}; {instead}. phrasebox models lists what fits which model"
        )
    return config.for_tower(tower)


AnyExplainerConfig = Annotated[SerializeAsAny[ExplainerConfig], BeforeValidator(EXPLAINERS.config)]
"""The `explain` section of a run."""
