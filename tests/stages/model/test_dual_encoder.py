"""Dual encoders of transformers: embeddings of images and texts are its own, and every explainer that fits has maps."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.contract.errors import ConfigError, WeightsError
from phrasebox.stages.explain import EXPLAINERS, kinds_for
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.text_encoder import TextEncoder
from phrasebox.stages.model.tokenizer import tokenizer_of
from tests.closeness import assert_close
from tests.messages import expect_error
from tests.stages.model.dual_encoders import (
    KINDS,
    POSITIONS,
    change_config,
    image_features,
    real_sample_of,
    sample_of,
    save_dual_encoder,
    text_features,
)
from tests.stages.model.hugging_face import config_of
from tests.stages.model.saved import load_model

TOWERS = {
    "siglip2": "latent_pool",
    "tipsv2, gated": "attention_pool",
    **dict.fromkeys(("metaclip_2", "tipsv2", "altclip", "chinese_clip"), "class_token"),
}
TEXTS = ["a red car", "Two dogs", "the man on his bike", "two", "a red car two dogs " * 9, "红色汽车"]
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each model. Only to be read."""
    root = tmp_path_factory.mktemp("models")
    return {kind: save_dual_encoder(sample_of(kind), root / kind.replace(", ", "-")) for kind in KINDS}


def clip_of(folder: Path) -> ClipModel:
    return load_model(config_of(folder))


def pixels(height: int = 32, width: int = 32, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height + width)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


@kinds
@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 56), (64, 64)])
def test_images_embed_as_in_transformers(
    kind: str, height: int, width: int, folders: dict[str, Path]
) -> None:
    """Also those of other sizes, for which transformers resizes positions."""
    tower = clip_of(folders[kind]).tower
    assert tower.kind == TOWERS[kind]
    rgb = pixels(height, width)
    expected = image_features(sample_of(kind), tower.normalise(rgb))
    assert expected.std() > 0.1
    assert_close(tower.encode(rgb), expected, 1e-4)


@kinds
def test_texts_embed_as_in_transformers(kind: str, folders: dict[str, Path]) -> None:
    """Also those that are longer than the context, and in batches of any other lengths."""
    clip = clip_of(folders[kind])
    expected = text_features(sample_of(kind), TEXTS)
    assert expected.std() > 0.1
    assert_close(clip.encode_text(TEXTS), expected, 1e-4)
    for text, embedding in zip(TEXTS, expected, strict=True):
        assert_close(clip.encode_text([text])[0], embedding, 1e-4)
    assert clip.embed_dim == expected.shape[1]


@kinds
def test_an_empty_text_has_numbers(kind: str, folders: dict[str, Path]) -> None:
    assert clip_of(folders[kind]).encode_text(["", "a red car"]).isfinite().all()


@kinds
def test_a_folder_says_what_it_is(kind: str, folders: dict[str, Path]) -> None:
    description = describe(config_of(folders[kind]))
    sample = sample_of(kind)
    model = sample.model
    assert description.layout == f"transformers {type(model).__name__}"
    assert description.tower == TOWERS[kind]
    assert description.described_by == "config.json, preprocessor_config.json, tokenizer.json"
    assert (description.input.size_px, description.input.patch_px) == (32, 8)
    assert description.input.interpolation == ("bilinear" if kind.startswith("tips") else "bicubic")
    assert tokenizer_of(description).context_length == POSITIONS
    clip = clip_of(folders[kind])
    scale = 1 / model.temperature if kind.startswith("tips") else model.logit_scale.exp()
    assert clip.logit_scale == pytest.approx(scale.item(), rel=1e-5)
    bias = getattr(model, "logit_bias", None)
    assert clip.logit_bias == (None if bias is None else pytest.approx(bias.item()))


def test_images_are_not_normalised_where_the_processor_does_not(folders: dict[str, Path]) -> None:
    spec = describe(config_of(folders["tipsv2"])).input
    assert (spec.mean, spec.std) == ((0, 0, 0), (1, 1, 1))
    rgb = pixels()
    assert_close(clip_of(folders["tipsv2"]).tower.normalise(rgb), rgb.permute(0, 3, 1, 2).float() / 255)


@kinds
def test_without_a_processor_images_are_those_of_the_model_s_class(kind: str, tmp_path: Path) -> None:
    sample = sample_of(kind)
    folder = save_dual_encoder(sample._replace(images={}), tmp_path / "model")
    spec = describe(config_of(folder)).input
    expected = {"siglip2": 0.5, "tipsv2": 0.0, "tipsv2, gated": 0.0}.get(kind, 0.48145466)
    assert spec.mean[0] == expected


@kinds
def test_every_explainer_that_fits_has_maps(kind: str, folders: dict[str, Path]) -> None:
    clip = clip_of(folders[kind])
    rgb = pixels(32, 48, 1).numpy()
    names = kinds_for(clip.tower.kind)
    assert "grad_eclip" in names
    for name in names:
        explainer = EXPLAINERS[name]
        [maps] = explainer(explainer.config_type(), clip).explain(rgb, [["a red car", "two dogs"]])
        for heat_map in maps:
            assert heat_map.values.shape == (4, 6), name
            assert np.isfinite(heat_map.values).all(), name
            assert heat_map.values.any() != bool(heat_map.fault), name


def test_grad_eclip_leaves_out_the_registers(folders: dict[str, Path]) -> None:
    """The paper's equations on the tokens of transformers' own last block, whose patches come behind three others."""
    clip = clip_of(folders["tipsv2"])
    explainer = EXPLAINERS["grad_eclip"]
    config = explainer.config_type(affinity="none", heads="model")
    rgb = pixels(count=1)
    [[heat_map]] = explainer(config, clip).explain(rgb.numpy(), [["a red car"]])
    vision = sample_of("tipsv2").model.vision_model
    text = F.normalize(clip.encode_text(["a red car"]), dim=-1)[0].float()
    block = vision.encoder.layer[-1]
    with torch.no_grad():
        x = vision.embeddings(clip.tower.normalise(rgb))
        for layer in vision.encoder.layer[:-1]:
            x = layer(x)
        z = block.norm1(x)
        attention = block.attention
        q, k, v = (getattr(attention, f"{name}_proj")(z)[0] for name in "qkv")
        heads = [
            part.unflatten(-1, (attention.num_attention_heads, -1)).transpose(0, 1) for part in (q, k, v)
        ]
        weights = (heads[0] @ heads[1].mT * attention.head_dim**-0.5).softmax(dim=-1)
        output = (weights @ heads[2]).transpose(0, 1).flatten(1)[0]
    o = output.clone().requires_grad_()
    y = x[0, 0] + block.layer_scale1(attention.o_proj(o))
    y = y + block.layer_scale2(block.mlp(block.norm2(y)))
    (w,) = torch.autograd.grad(F.cosine_similarity(vision.layernorm(y), text, dim=0), o)
    similarity = F.cosine_similarity(q[0], k[3:], dim=-1)
    similarity = (similarity - similarity.min()) / (similarity.max() - similarity.min())
    expected = (similarity * (v[3:] @ w)).clamp(min=0).detach()
    assert expected.max() > 0
    assert_close(heat_map.values.flatten(), expected, 1e-3)


def test_a_register_that_is_not_looked_at_changes_no_map(folders: dict[str, Path]) -> None:
    """Rows of explainers begin behind the registers, so maps are those of the tower without them."""
    clip = clip_of(folders["tipsv2"])
    rgb = pixels(count=1)
    tower: Any = clip.tower
    assert tower.prefix_tokens == 3
    assert tower.embed(rgb).shape[1] == 3 + 16
    order = torch.tensor([0, 2, 1, *range(3, 19)])
    x = tower.embed(rgb)
    for block in tower.blocks:
        swapped = block(x[:, order])
        x = block(x)
        assert_close(swapped[:, order], x, 1e-4)


def test_a_siglip_2_gets_texts_without_capitals(folders: dict[str, Path]) -> None:
    """The tokenizer of published weights calls itself Gemma's, and knows capitals."""
    tokenizer = tokenizer_of(describe(config_of(folders["siglip2"])))
    assert torch.equal(tokenizer(["Two Dogs"]), tokenizer(["two dogs"]))
    assert tokenizer(["two dogs"]).shape == (1, POSITIONS)


@pytest.mark.parametrize("kind", ["metaclip_2", "tipsv2", "altclip", "chinese_clip"])
def test_texts_are_cut_off_at_their_end(kind: str, folders: dict[str, Path]) -> None:
    clip = clip_of(folders[kind])
    encode = clip.encode_text
    assert isinstance(encode, TextEncoder)
    assert encode.tower is not None
    lengths = []
    module: Any = encode.model
    module.text_model.register_forward_pre_hook(
        lambda _, __, inputs: lengths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    encode(["a red car", "two"])
    assert max(lengths) < POSITIONS


@pytest.mark.parametrize("kind", ["metaclip_2", "tipsv2", "altclip", "chinese_clip", "siglip2"])
def test_texts_have_the_precision_of_a_run(kind: str, folders: dict[str, Path]) -> None:
    config = config_of(folders[kind])
    expected = load_model(config).encode_text(TEXTS)
    encode: Any = load_model(config.model_copy(update={"precision": "bf16"})).encode_text
    assert {weight.dtype for weight in encode.model.parameters()} == {torch.bfloat16}
    assert F.cosine_similarity(encode(TEXTS).float(), expected, dim=-1).min() > 0.99


def test_the_fingerprint_follows_the_tokenizer_and_the_config(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["metaclip_2"], tmp_path / "metaclip_2"))
    seen = {describe(config_of(folder)).fingerprint}
    change_config(folder, "vision_config", hidden_act="gelu")
    seen.add(describe(config_of(folder)).fingerprint)
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("{", '{"clean_up_tokenization_spaces": true,', 1))
    seen.add(describe(config_of(folder)).fingerprint)
    assert len(seen) == 3


def without(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    "change",
    [
        without("tokenizer.json"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: change_config(folder, "text_config", eos_token_id=7),
        lambda folder: change_config(folder, "text_config", vocab_size=20),
        lambda folder: change_config(folder, "vision_config", image_size=[32, 64]),
        lambda folder: change_config(folder, "vision_config", num_attention_heads=7),
        lambda folder: change_config(folder, "vision_config", num_hidden_layers=2),
        lambda folder: change_config(folder, "vision_config", num_hidden_layers=4),
        lambda folder: change_config(folder, "vision_config", hidden_size=32),
        lambda folder: change_config(folder, "", model_type="jina_clip"),
        lambda folder: change_config(folder, "", model_type="align"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(
    change: Callable[[Path], Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["metaclip_2"], tmp_path / "metaclip_2"))
    change(folder)
    with expect_error(ConfigError, WeightsError, key="model.checkpoint"):
        tokenizer_of(describe(config_of(folder)))


def test_texts_and_images_must_have_one_width(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["siglip2"], tmp_path / "siglip2"))
    change_config(folder, "text_config", projection_size=32)
    with expect_error(ConfigError, key="model.checkpoint"):
        describe(config_of(folder))


def test_an_older_transformers_is_said(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.delattr(transformers, "Tipsv2Config", raising=False)
    monkeypatch.setattr(transformers, "__version__", "5.0.0")
    monkeypatch.setattr(type(transformers), "__getattr__", _missing, raising=False)
    with expect_error(ConfigError, key="model.checkpoint"):
        describe(config_of(folders["tipsv2"]))


def _missing(self: Any, name: str) -> Any:
    raise AttributeError(name)


def test_transformers_is_needed(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phrasebox.stages.model.dual_encoder.find_spec", lambda name: None)
    with expect_error(ConfigError, key="model.checkpoint"):
        describe(config_of(folders["tipsv2"]))


def test_code_and_kernels_that_a_folder_names_are_never_loaded(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["chinese_clip"], tmp_path / "chinese_clip"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change_config(
        folder,
        "",
        auto_map={
            "AutoModel": "evil.Evil",
            "AutoConfig": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", None],
        },
        _attn_implementation="someone/kernels",
        attn_implementation="someone/kernels",
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
    )
    change_config(folder, "vision_config", _attn_implementation="someone/kernels")
    settings = folder / "tokenizer_config.json"
    settings.write_text(
        settings.read_text().replace("{", '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]},', 1)
    )
    assert_close(clip_of(folder).encode_text(TEXTS), clip_of(folders["chinese_clip"]).encode_text(TEXTS))
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@kinds
def test_real_sizes_embed_as_in_transformers(kind: str, tmp_path: Path) -> None:
    """The sizes of each class's defaults, which are those of its smallest published model or near, but few words."""
    sample = real_sample_of(kind)
    folder = save_dual_encoder(sample, tmp_path / "model")
    clip = clip_of(folder)
    side = clip.input.size_px
    assert side in (224, 256, 448)
    rgb = pixels(side, side, 1)
    assert_close(clip.tower.encode(rgb), image_features(sample, clip.tower.normalise(rgb)), 1e-4)
    assert_close(
        clip.encode_text(TEXTS),
        text_features(sample, TEXTS, clip.encode_text.tokenizer.context_length),
        1e-4,
    )
    [[heat_map]] = EXPLAINERS["grad_eclip"](EXPLAINERS["grad_eclip"].config_type(), clip).explain(
        rgb.numpy(), [["a red car"]]
    )
    assert np.isfinite(heat_map.values).all()
    assert heat_map.values.shape == (side // clip.input.patch_px,) * 2
