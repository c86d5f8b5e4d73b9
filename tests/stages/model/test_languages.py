"""Which models know more than English: their family says so, and of unknown weights names and tokenizers."""

import open_clip
import pytest

from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.checkpoints.dual_encoders import DUAL_ENCODERS
from phrasebox.stages.model.config import InputSpec, ModelConfig, ModelDescription
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.families import family_of, family_of_folder
from phrasebox.stages.model.languages import names_english_only

INPUT = InputSpec(size_px=224, patch_px=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def described(
    name: str, pretrained: str | None = None, dual_encoder: Json | None = None
) -> ModelDescription:
    architecture = {"text_cfg": {}} if dual_encoder else open_clip.get_model_config(name)
    return ModelDescription(
        name=name, architecture=architecture, input=INPUT, pretrained=pretrained, dual_encoder=dual_encoder
    )


def test_each_tag_of_open_clip_reads_the_languages_of_its_family() -> None:
    languages = {(name, tag): family_of(f"{name}/{tag}") for name, tag in open_clip.list_pretrained()}
    assert {family.languages for family in languages.values() if family is not None} == {"English", "many"}
    for (name, tag), family in languages.items():
        assert family is not None
        assert described(name, tag).reads_english_only == (family.languages == "English"), (name, tag)


@pytest.mark.parametrize("kind", [*DUAL_ENCODERS])
def test_each_dual_encoder_reads_the_languages_of_its_family(kind: str) -> None:
    family = family_of_folder(kind)
    assert family is not None
    reads_english_only = described("mine", dual_encoder={"model_type": kind}).reads_english_only
    assert reads_english_only == (family.languages == "English") == (kind == "tipsv2")


def test_names_of_unknown_weights_agree_with_the_families() -> None:
    """A file for an architecture of open_clip was mostly fine-tuned from its weights."""
    for name, tag in open_clip.list_pretrained():
        family = family_of(f"{name}/{tag}")
        assert family is not None
        assert described(name).reads_english_only == (family.languages == "English"), name


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        ("ViT-B-32", "openai", True),
        ("ViT-B-16-SigLIP", "webli", True),
        ("ViT-B-16-SigLIP-256", "webli", True),
        ("ViT-B-16-SigLIP-i18n-256", "webli", False),
        ("ViT-B-16-SigLIP2", "webli", False),
        ("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k", False),
        ("ViT-H-14-worldwide", "metaclip2_worldwide", False),
    ],
)
def test_models_of_open_clip(name: str, tag: str, expected: bool) -> None:
    assert described(name, tag).reads_english_only == expected


def test_bundled_models_read_english_only() -> None:
    assert describe(ModelConfig(name="demo")).reads_english_only


@pytest.mark.parametrize("kind", ["metaclip_2", "siglip2", "altclip", "chinese_clip"])
def test_unknown_weights_may_be_named_after_several_languages(kind: str) -> None:
    assert not names_english_only({"text_cfg": {}}, "my folder", None, kind)
    assert names_english_only({"text_cfg": {}}, "my folder", None, "tipsv2")


def test_a_folder_with_the_name_of_a_bundled_model_is_none() -> None:
    assert not described("photo", dual_encoder={"model_type": "chinese_clip"}).reads_english_only
