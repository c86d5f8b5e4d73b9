"""Families of weights: every tag of open_clip has one, and licences are those that timm names for the same weights."""

from fnmatch import fnmatch

import open_clip
import pytest
import timm

from phrasebox.stages.model.checkpoints.dual_encoders import DUAL_ENCODERS
from phrasebox.stages.model.config import OWN_MODELS
from phrasebox.stages.model.families import FAMILIES, family_of, family_of_folder
from tests.architecture.source import ROOT

TIMM = {
    "MetaCLIP": "vit_*.metaclip_*",
    "MetaCLIP 2": "vit_*.metaclip2_*",
    "MobileCLIP, MobileCLIP 2": "*.apple_mclip*",
    "SigLIP": "vit_*_siglip_*.webli",
    "SigLIP, multilingual": "vit_*_siglip_*.webli_i18n",
    "SigLIP 2": "*siglip*.v2_webli",
    "PE-Core": "vit_pe_core_*.fb",
    "EVA-CLIP": "eva*_clip_*.merged2b",
    "ViTamin": "vitamin_*.datacomp1b*",
    "TIPSv2": "*_tipsv2.webli",
}
"""Family -> names of timm for the image towers of the same weights."""

SPDX = {"Apple AMLR": "apple-amlr"}
"""Licence -> its name in timm, where it is not the same in small letters."""


def test_every_tag_of_open_clip_has_a_family() -> None:
    tags = [f"{name}/{tag}" for name, tag in open_clip.list_pretrained()]
    assert [tag for tag in (*OWN_MODELS, *tags) if family_of(tag) is None] == []


def test_every_folder_that_loads_has_a_family() -> None:
    assert [name for name in DUAL_ENCODERS if family_of_folder(name) is None] == []


def test_every_family_has_weights() -> None:
    """A pattern that fits nothing is a slip of the pen, or open_clip's names have changed."""
    tags = [*OWN_MODELS, *(f"{name}/{tag}" for name, tag in open_clip.list_pretrained())]
    names = {family.name for tag in tags if (family := family_of(tag)) is not None}
    names |= {family.name for name in DUAL_ENCODERS if (family := family_of_folder(name)) is not None}
    assert names == {family.name for family in FAMILIES}
    for family in FAMILIES:
        for pattern in family.weights:
            assert any(family_of(tag) == family and fnmatch(tag, pattern) for tag in tags), pattern


@pytest.mark.parametrize("name", TIMM)
def test_a_licence_is_the_one_that_timm_names(name: str) -> None:
    [family] = [family for family in FAMILIES if family.name == name]
    names = timm.list_models(TIMM[name], pretrained=True)
    assert names
    licences = {timm.get_pretrained_cfg(model).license for model in names}
    assert licences == {SPDX.get(family.licence, family.licence.lower())}


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("ViT-B-16-SigLIP2/webli", "SigLIP 2"),
        ("ViT-B-16-SigLIP-i18n-256/webli", "SigLIP, multilingual"),
        ("ViT-B-16-SigLIP/webli", "SigLIP"),
        ("ViT-H-14-worldwide/metaclip2_worldwide", "MetaCLIP 2"),
        ("ViT-H-14/metaclip_altogether", "MetaCLIP"),
        ("ViTamin-B/datacomp1b", "ViTamin"),
        ("EVA02-E-14/laion2b_s4b_b115k", "EVA-CLIP"),
        ("MobileCLIP2-B/dfndr2b", "MobileCLIP, MobileCLIP 2"),
        ("xlm-roberta-large-ViT-H-14/frozen_laion5b_s13b_b90k", "LAION, multilingual"),
    ],
)
def test_the_nearer_family_holds(weights: str, name: str) -> None:
    family = family_of(weights)
    assert family is not None
    assert family.name == name


def test_unknown_weights_have_no_family() -> None:
    assert family_of("my-clip/mine") is None
    assert family_of_folder("clip") is None


def test_the_page_about_models_has_the_table() -> None:
    page = (ROOT / "docs/how-to/choose-a-model.md").read_text("utf-8")
    rows = [
        f"| {family.name} | {family.licence} | {family.commercial} | {family.languages} |"
        for family in FAMILIES
    ]
    assert "\n".join(["|---|---|---|---|", *rows, ""]) in page
