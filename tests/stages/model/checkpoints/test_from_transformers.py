import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.module import module_of
from phrasebox.stages.model.tokenizer import tokenizer_of
from tests.build.files import read_json, write_json
from tests.closeness import assert_close
from tests.stages.model.hugging_face import (
    CLIP_TOKENS,
    IMAGES,
    TEXTS,
    assert_same,
    config_of,
    embeddings,
    features,
    save_sentencepiece,
    siglip_tokens,
    transformers_clip,
    transformers_siglip,
)
from tests.stages.model.saved import assert_scales_as, load_model, shapes_of


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_a_clip_of_transformers_embeds_as_there(act: str, tmp_path: Path) -> None:
    model = transformers_clip(act, layer_norm_eps=1e-3)
    model.save_pretrained(tmp_path)
    assert_same(embeddings(tmp_path), model, CLIP_TOKENS)
    assert_scales_as(load_model(config_of(tmp_path)), model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_real_sizes_embed_as_in_transformers(kind: str, tmp_path: Path) -> None:
    """The sizes of ViT-B-32 and of SigLIP's ViT-B-16, which are the defaults of transformers."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    torch.manual_seed(0)
    model = (CLIPModel(CLIPConfig()) if kind == "clip" else SiglipModel(SiglipConfig())).eval()
    model.save_pretrained(tmp_path)
    save_sentencepiece(tmp_path)
    pixels = torch.randn(2, 3, 224, 224)
    tokens = torch.randint(0, 60, (2, 64))
    tokens = CLIP_TOKENS if kind == "clip" else tokens
    loaded = module_of(describe(config_of(tmp_path)))
    with torch.no_grad():
        assert_close(loaded.encode_image(pixels), features(model, pixel_values=pixels))
        assert_close(loaded.encode_text(tokens), features(model, input_ids=tokens))


def test_what_an_older_config_json_says_twice_is_read_as_transformers_reads_it(clip_folder: Path) -> None:
    from transformers import CLIPModel

    file = clip_folder / "config.json"
    parsed = read_json(file)
    for section in ("text_config", "vision_config"):
        parsed[f"{section}_dict"] = {**parsed[section], "hidden_act": "gelu"}
        parsed[section] = {"hidden_act": "quick_gelu"}
    write_json(file, parsed)
    assert_same(embeddings(clip_folder), CLIPModel.from_pretrained(clip_folder).eval(), CLIP_TOKENS)


def test_a_siglip_of_transformers_embeds_as_there(
    siglip_source: tuple[Path, Any, Any], siglip_folder: Path
) -> None:
    folder, model, tokenizer = siglip_source
    assert_same(embeddings(folder), model, siglip_tokens(tokenizer))
    assert_scales_as(load_model(config_of(folder)), model)
    description = describe(config_of(folder))
    assert (description.tower, description.layout, description.input.mean) == (
        "latent_pool",
        "transformers SiglipModel",
        (0.5, 0.5, 0.5),
    )
    assert description.described_by == "config.json, preprocessor_config.json, spiece.model"
    for act in ("gelu", "quick_gelu"):
        other = transformers_siglip(act, layer_norm_eps=1e-5, projection_size=64)
        other.save_pretrained(siglip_folder)
        assert_same(embeddings(siglip_folder), other, siglip_tokens(tokenizer))


def test_a_clip_of_transformers_by_a_name_of_open_clip(
    clip: Any, clip_folder: Path, tmp_path: Path
) -> None:
    """The architecture is open_clip's or one's own, the tensors are transformers'."""
    described = describe(config_of(clip_folder))
    write_json(tmp_path / "mine.json", described.architecture)
    given = ModelConfig(
        config=tmp_path / "mine.json", weights=clip_folder / "model.safetensors", device="cpu"
    )
    with torch.no_grad():
        image = module_of(describe(given)).encode_image(IMAGES)
    assert_close(image, features(clip, pixel_values=IMAGES))
    assert describe(given).layout == "transformers CLIPModel"


def test_a_siglip_of_open_clip_s_takes_the_vocabulary_beside_it(
    siglip_folder: Path, tmp_path: Path
) -> None:
    architecture = open_clip.get_model_config("ViT-B-16-SigLIP")
    architecture["text_cfg"] |= {"context_length": 16, "vocab_size": 60}
    folder = tmp_path / "ours"
    folder.mkdir()
    write_json(folder / "open_clip_config.json", {"model_cfg": architecture})
    shapes = shapes_of("ViT-B-16-SigLIP", text_cfg=architecture["text_cfg"])
    torch.save(shapes, folder / "open_clip_pytorch_model.bin")
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(siglip_folder / name, folder / name)
    tokens = tokenizer_of(describe(config_of(folder)))(TEXTS)
    assert torch.equal(tokens, tokenizer_of(describe(config_of(siglip_folder)))(TEXTS))
