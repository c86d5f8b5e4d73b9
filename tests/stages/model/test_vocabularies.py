"""Memory of words: what the configuration says is what the built text tower has."""

import open_clip
import pytest
import torch

from phrasebox.stages.model.dual_encoder import architecture_of_dual_encoder
from phrasebox.stages.model.vocabularies import vocabulary_of
from tests.build.datasets import Json


@pytest.mark.parametrize(
    "name", ["ViT-B-16", "ViT-B-16-SigLIP2", "ViT-H-14-worldwide", "PE-Core-B-16", "RN50", "ViT-L-14-CLIPA"]
)
def test_the_table_of_words_is_as_large_as_is_built(name: str) -> None:
    text = open_clip.get_model_config(name)["text_cfg"]
    vocabulary = vocabulary_of(text)
    assert vocabulary is not None
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1}
    with torch.device("meta"):
        model = open_clip.CLIP(embed_dim=48, vision_cfg=vision, text_cfg={**text, "layers": 1})
    assert model.token_embedding.weight.nbytes == vocabulary.size_bytes
    assert model.context_length == vocabulary.context


def test_every_text_tower_of_open_clip_is_known() -> None:
    assert [
        n
        for n in open_clip.list_models()
        if vocabulary_of(open_clip.get_model_config(n)["text_cfg"]) is None
    ] == []
    assert vocabulary_of({"hf_model_name": "someone/else"}) is None


@pytest.mark.parametrize(
    ("model_type", "changes", "context"),
    [
        ("metaclip_2", {}, 77),
        ("metaclip_2", {"max_position_embeddings": 248}, 248),
        ("siglip2", {}, 64),
        ("tipsv2", {}, 64),
        ("chinese_clip", {}, 52),
        ("altclip", {}, 77),
    ],
)
def test_positions_are_the_limit_where_all_of_them_were_trained(
    model_type: str, changes: Json, context: int
) -> None:
    """The defaults of transformers are the positions of the published models."""
    settings = {"model_type": model_type, "text_config": changes}
    assert architecture_of_dual_encoder(settings)["text_cfg"]["context_length"] == context


def test_processors_and_open_clip_have_the_same_limits() -> None:
    from transformers.models.siglip2 import Siglip2Processor
    from transformers.models.tipsv2 import Tipsv2Processor

    for processor in (Siglip2Processor, Tipsv2Processor):
        assert processor.text_kwargs["max_length"] == 64
    assert open_clip.get_model_config("ViT-H-14-worldwide")["text_cfg"]["context_length"] == 77
