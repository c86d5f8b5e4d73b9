"""Settings of the explainers that propagate relevance, and who claims a patent on them. No torch, see `config.py`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from stages.explain.config import ExplainerConfig

CLAIM: Final = (
    "layer-wise relevance propagation is claimed to be patented, and to be free of charge for personal and scientific "
    "purposes only (the README of LXT, github.com/rachtibat/LRP-eXplains-Transformers)"
)
"""See `Explainer.claim`."""


class RelevanceConfig(ExplainerConfig):
    """What all explainers have that propagate relevance by the rules of `stages.explainers.relevance.rules`."""

    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    rule: Literal["attnlrp", "conservative"] = "attnlrp"
    """What an attention does with relevance. `attnlrp`: one half goes to the attention weights and on to queries and
    keys, the other to the values. `conservative`: all of it goes to the values, the weights are constants."""

    activation: Literal["identity", "gradient"] = "identity"
    """What an activation does with relevance. `identity`: it lets all of it pass, as AttnLRP has it. `gradient`: it
    multiplies by its slope, as gradient times input has it, which is what Ali et al. leave as it is."""

    gamma: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """How much the linear layers of the MLPs favour what agrees with their output (the gamma rule). 0 is the epsilon
    rule with no epsilon. LXT's example for CLIP tries 0, 0.01, 0.05, 0.1 and 1."""
