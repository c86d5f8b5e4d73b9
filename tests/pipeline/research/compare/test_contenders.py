"""Which explainers take part, and what is refused."""

import re

import pytest

from phrasebox.pipeline.research.compare.maps import contenders_of, undefined_explainers
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.explain import EXPLAINERS, kinds_for
from phrasebox.stages.model.config import TOWER_WORDS, TowerKind
from tests.build.cases import cases
from tests.messages import expect_error


def test_by_default_all_that_are_quick_and_free() -> None:
    labels = [contender.label for contender in contenders_of(None, "class_token", "m")]
    quick = [kind for kind in kinds_for("class_token") if EXPLAINERS[kind].cost != "perturbation"]
    assert labels == [kind for kind in quick if not EXPLAINERS[kind].claim]
    assert set(quick) - set(labels) == {"lrp", "clrp", "sg_lrp", "transformer_interpretability"}
    assert {"grad_eclip", "rollout", "maskclip"} <= set(labels)
    assert [contender.label for contender in contenders_of("all", "class_token", "m")] == kinds_for(
        "class_token"
    )


TOWERS: list[TowerKind] = ["class_token", "attention_pool", "latent_pool", "average_pool"]
towers = pytest.mark.parametrize("tower", TOWERS)


@towers
def test_what_is_not_defined_on_a_tower_is_said_with_the_reason(tower: TowerKind) -> None:
    sentences = undefined_explainers(tower, "m")
    kinds = [kind for sentence in sentences for kind in re.findall(r"\w+", sentence.split(": ")[1])]
    assert {kind for kind in kinds if kind in EXPLAINERS} == set(EXPLAINERS) - set(kinds_for(tower))
    assert all(TOWER_WORDS[tower] in sentence for sentence in sentences)
    assert any("(needed: transformer blocks with a class token)" in sentence for sentence in sentences) == (
        tower != "class_token"
    )


@towers
def test_maps_are_plain_for_every_explainer(tower: TowerKind) -> None:
    for contender in contenders_of("all", tower, "m"):
        assert (contender.config.contrast, contender.config.affinity) == (0.0, "none")


def test_settings_stand_behind_colons() -> None:
    named = (
        "grad_eclip, grad_eclip:heads=single:blocks=2, grad_eclip:contrast=0.5, grad_eclip:variant=authors"
    )
    plain, single, contrasted, authors = contenders_of(named, "class_token", "m")
    assert (plain.label, plain.config.heads, plain.config.blocks) == ("grad_eclip", "model", 1)  # type: ignore[attr-defined]
    assert (single.config.heads, single.config.blocks) == ("single", 2)  # type: ignore[attr-defined]
    assert contrasted.config.contrast == 0.5, "what was typed stays"
    assert authors.config.image_size == "keep"
    (demo,) = contenders_of("grad_eclip", "class_token", "demo")
    assert demo.config.blocks == 4, "the model brings it"  # type: ignore[attr-defined]


REFUSED = {
    "unknown": "gradeclip",
    "another tower's": "cam",
    "unknown setting": "grad_eclip:head=single",
    "impossible value": "maskclip:affinity=perhaps",
    "no value": "maskclip:affinity",
    "twice": "maskclip,maskclip",
    "nothing": "maskclip,,",
}


@cases("selection", REFUSED)
def test_what_is_refused_says_what_fits(selection: str) -> None:
    with expect_error(ConfigError, key="explainers"):
        contenders_of(selection, "class_token", "m")
