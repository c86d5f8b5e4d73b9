"""Which models know more than English, as far as their names and tokenizers say so."""

import pytest

from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.languages import reads_english_only


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        ("ViT-B-32", "openai", True),
        ("ViT-B-16-SigLIP", "webli", True),
        ("ViT-B-16-SigLIP-i18n-256", "webli", False),
        ("ViT-B-16-SigLIP2", "webli", False),
        ("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k", False),
        ("ViT-H-14-worldwide", "metaclip2_worldwide", False),
    ],
)
def test_models_of_open_clip(name: str, tag: str, expected: bool) -> None:
    import open_clip

    architecture = open_clip.get_model_config(name)
    assert reads_english_only(architecture, name, tag) == expected


def test_bundled_models_read_english_only() -> None:
    assert describe(ModelConfig(name="demo")).reads_english_only


@pytest.mark.parametrize("kind", ["metaclip_2", "siglip2", "altclip", "chinese_clip"])
def test_dual_encoders_of_several_languages(kind: str) -> None:
    assert not reads_english_only({"text_cfg": {}}, "my folder", None, kind)
    assert reads_english_only({"text_cfg": {}}, "my folder", None, "tipsv2")
