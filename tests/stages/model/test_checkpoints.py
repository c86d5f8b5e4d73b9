from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.contract.errors import ConfigError, PhraseboxError, WeightsError
from stages.explain.grad_eclip import GradEclip, GradEclipConfig
from stages.model.checkpoints import read_checkpoint
from stages.model.config import ModelConfig
from stages.model.describe import describe, fingerprint, load_tokenizer, tokenizer_of
from stages.model.load import build_with_weights, load, refuse_misfit
from tests.factories import SPEC, tiny_architecture, tiny_clip
from tests.stages.model.hugging_face import (
    features,
    save_images,
    save_sentencepiece,
    transformers_clip,
    transformers_siglip,
)

TEXTS = ["a red car", "Two dogs", "the man on his bike"]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def config_of(path: Path) -> ModelConfig:
    return ModelConfig(checkpoint=path, device="cpu", threads=2)


def embeddings(path: Path) -> tuple[Tensor, Tensor]:
    """Of IMAGES and TEXTS, by the model and the tokenizer of a checkpoint."""
    description = describe(config_of(path))
    model, tokenizer = build_with_weights(description), tokenizer_of(description)
    with torch.no_grad():
        return model.encode_image(IMAGES), model.encode_text(tokenizer(TEXTS))


def assert_same(found: tuple[Tensor, Tensor], model: Any, tokens: Tensor) -> None:
    """Embeddings are those of `transformers` to 1e-5, of images and of texts."""
    image, text = features(model, pixel_values=IMAGES), features(model, input_ids=tokens)
    assert image.std() > 0.1
    assert text.std() > 0.1
    assert torch.allclose(found[0], image, atol=1e-5, rtol=1e-5)
    assert torch.allclose(found[1], text, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def clip() -> Any:
    return transformers_clip()


@pytest.fixture
def clip_folder(clip: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "my-clip"
    clip.save_pretrained(folder)
    save_images(folder)
    return folder


CLIP_TOKENS = open_clip.tokenize(TEXTS)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_a_clip_of_transformers_embeds_as_there(act: str, tmp_path: Path) -> None:
    model = transformers_clip(act, layer_norm_eps=1e-3)
    model.save_pretrained(tmp_path)
    assert_same(embeddings(tmp_path), model, CLIP_TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_real_sizes_embed_as_in_transformers(kind: str, tmp_path: Path) -> None:
    """The sizes of ViT-B-32 and of SigLIP's ViT-B-16, which are the defaults of transformers."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    torch.manual_seed(0)
    model = (CLIPModel(CLIPConfig()) if kind == "clip" else SiglipModel(SiglipConfig())).eval()
    model.save_pretrained(tmp_path)
    save_sentencepiece(tmp_path)
    pixels, tokens = torch.randn(2, 3, 224, 224), torch.randint(0, 60, (2, 64))
    tokens = CLIP_TOKENS if kind == "clip" else tokens
    loaded = build_with_weights(describe(config_of(tmp_path)))
    with torch.no_grad():
        image, text = loaded.encode_image(pixels), loaded.encode_text(tokens)
    assert torch.allclose(image, features(model, pixel_values=pixels), atol=1e-5)
    assert torch.allclose(text, features(model, input_ids=tokens), atol=1e-5)


def test_clip_s_tokenizer_is_that_of_transformers(tmp_path: Path) -> None:
    """Checked with open_clip's merges as transformers keeps them: no vocabulary can be downloaded here."""
    from transformers import CLIPTokenizer

    own = open_clip.tokenizer.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(piece, piece): number for piece, number in own.encoder.items()}
    theirs = CLIPTokenizer(vocab=vocabulary, merges=list(own.bpe_ranks))
    texts = [*TEXTS, "A  photo of a café, isn't it?", "word " * 100]
    tokens = theirs(texts, return_tensors="pt", max_length=77, padding="max_length", truncation=True)
    end = own.encoder["<end_of_text>"]
    ids = tokens.input_ids.masked_fill(tokens.attention_mask == 0, 0)
    assert torch.equal(ids, open_clip.tokenize(texts))
    assert (ids == end).sum(dim=1).tolist() == [1] * len(texts)


def as_index(folder: Path, name: str) -> None:
    """The weights of a folder in two files and an index."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, stem, end = sorted(state), *name.split(".")
    halves = {f"{stem}-0000{k + 1}-of-00002.{end}": names[k::2] for k in (0, 1)}
    for file, part in halves.items():
        if end == "bin":
            torch.save({key: state[key] for key in part}, folder / file)
        else:
            save_file({key: state[key] for key in part}, folder / file)
    places = {key: file for file, part in halves.items() for key in part}
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_training_saved_it(folder: Path) -> None:
    state = {f"module.{key}": value for key, value in load_file(folder / "model.safetensors").items()}
    state["module.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save({"state_dict": state, "epoch": 3}, folder / "last.pt")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "change",
    [
        as_bin,
        lambda folder: as_index(folder, "model.safetensors"),
        lambda folder: as_index(folder, "pytorch_model.bin"),
        as_training_saved_it,
        lambda folder: (folder / "model.safetensors").rename(folder / "fine-tuned.safetensors"),
    ],
    ids=["bin", "index", "index of bin", "training", "another name"],
)
def test_all_the_ways_in_which_weights_are_kept(change: Callable[[Path], Any], clip: Any, clip_folder: Path) -> None:
    change(clip_folder)
    assert_same(embeddings(clip_folder), clip, CLIP_TOKENS)


def test_weights_of_16_bits(clip: Any, clip_folder: Path) -> None:
    state = {name: value.bfloat16() for name, value in load_file(clip_folder / "model.safetensors").items()}
    save_file(state, clip_folder / "model.safetensors")
    rounded = copy.deepcopy(clip)
    rounded.load_state_dict({name: value.float() for name, value in state.items()})
    assert_same(embeddings(clip_folder), rounded, CLIP_TOKENS)


def test_a_file_is_described_by_what_stands_beside_it(clip: Any, clip_folder: Path) -> None:
    assert_same(embeddings(clip_folder / "model.safetensors"), clip, CLIP_TOKENS)


def test_what_an_older_config_json_says_twice_is_read_as_transformers_reads_it(clip_folder: Path) -> None:
    from transformers import CLIPModel

    file = clip_folder / "config.json"
    parsed = json.loads(file.read_text())
    for section in ("text_config", "vision_config"):
        parsed[f"{section}_dict"] = {**parsed[section], "hidden_act": "gelu"}
        parsed[section] = {"hidden_act": "quick_gelu"}
    file.write_text(json.dumps(parsed))
    assert_same(embeddings(clip_folder), CLIPModel.from_pretrained(clip_folder).eval(), CLIP_TOKENS)


def test_a_folder_says_what_it_is(clip_folder: Path) -> None:
    found = describe(config_of(clip_folder))
    assert (found.name, found.layout) == ("my-clip", "transformers CLIPModel")
    assert found.described_by == "config.json, preprocessor_config.json"
    assert refuse_misfit(found) == found.layout
    assert (found.input.size_px, found.input.patch_px, found.input.interpolation) == (32, 8, "bicubic")
    save_images(clip_folder, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.2], resample=2)
    changed = describe(config_of(clip_folder))
    assert (changed.input.mean, changed.input.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert changed.input.interpolation == "bilinear"
    assert fingerprint(changed) != fingerprint(found)


def test_the_fingerprint_follows_every_file_of_the_weights(clip_folder: Path) -> None:
    as_index(clip_folder, "model.safetensors")
    before = fingerprint(describe(config_of(clip_folder)))
    assert before == fingerprint(describe(config_of(clip_folder)))
    part = clip_folder / "model-00002-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\x07")
    assert fingerprint(describe(config_of(clip_folder))) != before


def test_a_clip_of_transformers_is_explained_as_the_same_one_of_open_clip(clip_folder: Path) -> None:
    """From pixels to heat: images are normalised as preprocessor_config.json says."""
    clip = load(config_of(clip_folder))
    rgb = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(values)[:, None, None] for values in (clip.input.mean, clip.input.std))
    with torch.no_grad():
        model = build_with_weights(describe(config_of(clip_folder)))
        expected = model.encode_image((rgb.permute(0, 3, 1, 2) / 255 - mean) / std)
    assert torch.allclose(clip.tower.encode(rgb), expected, atol=1e-5)
    assert clip.encode_text(TEXTS).shape == (3, 48)
    (maps,) = GradEclip(GradEclipConfig(blocks=2), clip).explain(rgb.numpy(), [["a red car"]])
    assert maps[0].values.max() > 0


# SigLIP


@pytest.fixture(scope="module")
def siglip_source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder with a SigLIP and its sentencepiece model; the model; and transformers' tokenizer. Only to be read."""
    folder = tmp_path_factory.mktemp("siglip") / "my-siglip"
    model = transformers_siglip()
    model.save_pretrained(folder)
    save_images(folder, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return folder, model, save_sentencepiece(folder)


@pytest.fixture
def siglip_folder(siglip_source: tuple[Path, Any, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(siglip_source[0], tmp_path / "my-siglip"))


def siglip_tokens(tokenizer: Any, texts: list[str] = TEXTS, length: int = 16) -> Tensor:
    found: Tensor = tokenizer(
        texts, return_tensors="pt", max_length=length, padding="max_length", truncation=True
    ).input_ids
    return found


def test_a_siglip_of_transformers_embeds_as_there(siglip_source: tuple[Path, Any, Any]) -> None:
    folder, model, tokenizer = siglip_source
    assert_same(embeddings(folder), model, siglip_tokens(tokenizer))
    found = describe(config_of(folder))
    assert (found.layout, found.input.mean) == ("transformers SiglipModel", (0.5, 0.5, 0.5))
    assert found.described_by == "config.json, preprocessor_config.json, spiece.model"
    assert refuse_misfit(found) == found.layout


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_a_siglip_with_another_activation(act: str, siglip_source: tuple[Path, Any, Any], siglip_folder: Path) -> None:
    model = transformers_siglip(act, layer_norm_eps=1e-5, projection_size=64)
    model.save_pretrained(siglip_folder)
    assert_same(embeddings(siglip_folder), model, siglip_tokens(siglip_source[2]))


def test_a_siglip_s_sentencepiece_is_read_as_transformers_reads_it(siglip_source: tuple[Path, Any, Any]) -> None:
    texts = [*TEXTS, "", "Two DOGS, on the man's bike!", "xyz", "a red car " * 10, "the man  & some trees"]
    folder, _, tokenizer = siglip_source
    assert torch.equal(load_tokenizer(config_of(folder))(texts), siglip_tokens(tokenizer, texts))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_siglip_s_tokenizer_json_is_read_as_transformers_reads_it(side: str, siglip_folder: Path) -> None:
    """Of the form of SigLIP 2: Gemma's, without a token at the beginning, with one at the end, filled up by <pad>."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, Siglip2Tokenizer

    (siglip_folder / "spiece.model").unlink()
    (siglip_folder / "tokenizer_config.json").unlink()
    letters = "▁adegnorstwc,!"
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = {piece: k for k, piece in enumerate([*specials, *letters, "do", "dog", "▁r", "▁re"])}
    made = Siglip2Tokenizer(
        vocab=vocabulary, merges=[("d", "o"), ("do", "g"), ("▁", "r"), ("▁r", "e")], padding_side=side
    )
    template = TemplateProcessing(single="$A <eos>", pair="$A $B <eos>", special_tokens=[("<eos>", 1)])
    made.backend_tokenizer.post_processor = template
    made.save_pretrained(siglip_folder)
    tokenizer = AutoTokenizer.from_pretrained(siglip_folder)
    texts = ["a red dog", "Two DOGS, now!", "", "a dog and " * 5]
    expected = siglip_tokens(tokenizer, texts)
    found = load_tokenizer(config_of(siglip_folder))(texts)
    assert torch.equal(found, expected)
    assert found[0].tolist()[-1 if side == "left" else 0] != 0
    assert (found == 1).sum(dim=1).tolist() == [1] * 4
    assert describe(config_of(siglip_folder)).described_by.endswith("tokenizer.json")


def test_a_siglip_s_vocabulary_belongs_to_its_fingerprint(siglip_folder: Path) -> None:
    before = fingerprint(describe(config_of(siglip_folder)))
    vocabulary = siglip_folder / "spiece.model"
    vocabulary.write_bytes(vocabulary.read_bytes() + b"\x00")
    assert fingerprint(describe(config_of(siglip_folder))) != before


def test_sizes_of_a_released_siglip_need_no_config_json(tmp_path: Path) -> None:
    """Width 768 has 12 heads; two layers suffice to see it."""
    from transformers import SiglipConfig, SiglipModel

    text = {"num_hidden_layers": 1, "vocab_size": 60, "bos_token_id": 0, "eos_token_id": 1, "intermediate_size": 96}
    vision = {"num_hidden_layers": 1, "image_size": 32, "intermediate_size": 96}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    model.save_pretrained(tmp_path)
    save_images(tmp_path)
    tokenizer = save_sentencepiece(tmp_path)
    (tmp_path / "config.json").unlink()
    description = describe(config_of(tmp_path))
    assert description.described_by.startswith("its tensors")
    assert_same(embeddings(tmp_path), model, siglip_tokens(tokenizer, length=64))


# OpenAI's and open_clip's own


@pytest.mark.parametrize("form", ["state dict", "torchscript"])
def test_openai_s_checkpoint_needs_nothing_beside_it(form: str, tmp_path: Path) -> None:
    """In 16 bits; as a state dict, and as an archive with code in it, of which none is run."""
    architecture = tiny_architecture(width=128, head_width=64)
    architecture["text_cfg"] |= {"width": 64, "heads": 1}
    torch.manual_seed(0)
    model = open_clip.CLIP(**architecture, quick_gelu=True).eval()
    state = {name: value.half() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in state.items()})
    extra = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    if form == "torchscript":
        archived = open_clip.CLIP(**architecture, quick_gelu=True).eval().half()
        archived.load_state_dict(state)
        archived.input_resolution = 32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(archived), str(tmp_path / "ViT.pt"))
    else:
        torch.save({**state, **{key: torch.tensor(number) for key, number in extra.items()}}, tmp_path / "ViT.pt")
    image, text = embeddings(tmp_path / "ViT.pt")
    with torch.no_grad():
        assert torch.allclose(image, model.encode_image(IMAGES), atol=1e-5)
        assert torch.allclose(text, model.encode_text(CLIP_TOKENS), atol=1e-5)
    found = describe(config_of(tmp_path / "ViT.pt"))
    assert (found.name, found.layout, found.described_by) == ("ViT", "OpenAI's CLIP", "its tensors")
    assert found.input.mean == open_clip.OPENAI_DATASET_MEAN


def test_openai_s_resnet_is_known_by_its_tensors(tmp_path: Path) -> None:
    architecture = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None, "head_width": 64},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    model = open_clip.CLIP(**architecture, quick_gelu=True).eval()
    extra = {"input_resolution": torch.tensor(64)}
    torch.save({**model.state_dict(), **extra}, tmp_path / "RN.pt")
    found = read_checkpoint(tmp_path / "RN.pt").architecture
    assert {**found["vision_cfg"], "head_width": 64} == architecture["vision_cfg"]
    loaded = build_with_weights(describe(config_of(tmp_path / "RN.pt")))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(loaded.encode_image(pixels), model.encode_image(pixels), atol=1e-5)


@pytest.fixture
def open_clip_folder(tmp_path: Path) -> tuple[Path, Any]:
    """A folder as open_clip's push_to_hf_hub leaves it, with transformers' config.json of another model in it."""
    model = tiny_clip(quick_gelu=True)
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": list(SPEC.std), "interpolation": "bilinear"}
    parsed = {"model_cfg": {**tiny_architecture(), "quick_gelu": True}, "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(parsed))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    return tmp_path, model


def test_a_folder_of_open_clip(open_clip_folder: tuple[Path, Any], clip: Any) -> None:
    folder, model = open_clip_folder
    clip.save_pretrained(folder)  # as in many repositories, which hold the model twice
    image, text = embeddings(folder)
    with torch.no_grad():
        assert torch.allclose(image, model.encode_image(IMAGES), atol=1e-5)
        assert torch.allclose(text, model.encode_text(CLIP_TOKENS), atol=1e-5)
    found = describe(config_of(folder))
    assert (found.layout, found.described_by) == ("open_clip", "open_clip_config.json")
    assert (found.input.mean, found.input.interpolation) == ((0.5, 0.4, 0.3), "bilinear")


def test_a_folder_of_open_clip_cannot_ask_for_code(open_clip_folder: tuple[Path, Any]) -> None:
    file = open_clip_folder[0] / "open_clip_config.json"
    parsed = json.loads(file.read_text())
    parsed["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"trust_remote_code": True}}
    file.write_text(json.dumps(parsed))
    with pytest.raises(ConfigError, match="asks for trust_remote_code"):
        describe(config_of(open_clip_folder[0]))


def test_a_checkpoint_of_open_clip_s_trainer(tmp_path: Path) -> None:
    """The trainer writes its arguments above the folder of the checkpoints."""
    folder = tmp_path / "logs" / "run-1" / "checkpoints"
    folder.mkdir(parents=True)
    architecture = open_clip.get_model_config("ViT-B-32")
    architecture["vision_cfg"] |= {"image_size": 64}
    with torch.device("meta"):
        model = open_clip.CLIP(**architecture)
    state = {f"module.{name}": torch.zeros(value.shape, dtype=torch.int8) for name, value in model.state_dict().items()}
    torch.save({"epoch": 5, "name": "run-1", "state_dict": state, "optimizer": {}}, folder / "epoch_5.pt")
    params = "force_image_size: 64\nforce_quick_gelu: True\nimage_mean: [0.5, 0.4, 0.3]\nimage_std: None\n"
    (folder.parent / "params.txt").write_text(f"batch_size: 64\n{params}model: ViT-B-32\nname: run-1\n")
    found = describe(config_of(folder / "epoch_5.pt"))
    assert (found.layout, found.described_by) == ("open_clip", "params.txt, which names ViT-B-32")
    assert found.architecture == {**architecture, "quick_gelu": True}
    assert (found.input.size_px, found.input.mean, found.input.std) == (64, (0.5, 0.4, 0.3), SPEC.std)
    assert refuse_misfit(found) == "open_clip"


def test_tensors_that_fit_two_architectures_are_not_guessed_at(tmp_path: Path) -> None:
    """They do not tell the activation, with which everything would be a little wrong and nothing would fail."""
    for name, fitting in (("ViT-B-32", "ViT-B-32 and ViT-B-32-quickgelu"), ("RN50", "RN50 and RN50-quickgelu")):
        with torch.device("meta"):
            model = open_clip.CLIP(**open_clip.get_model_config(name))
        state = {key: torch.zeros(value.shape, dtype=torch.int8) for key, value in model.state_dict().items()}
        torch.save(state, tmp_path / "epoch_5.pt")
        expected = rf"epoch_5\.pt: its tensors fit {fitting}.*model\.name={name} with model\.weights=.*epoch_5\.pt"
        with pytest.raises(WeightsError, match=expected):
            describe(config_of(tmp_path / "epoch_5.pt"))


def test_a_clip_of_transformers_by_a_name_of_open_clip(clip: Any, clip_folder: Path, tmp_path: Path) -> None:
    """The architecture is open_clip's or one's own, the tensors are transformers'."""
    described = describe(config_of(clip_folder))
    (tmp_path / "mine.json").write_text(json.dumps(described.architecture))
    given = ModelConfig(config=tmp_path / "mine.json", weights=clip_folder / "model.safetensors", device="cpu")
    with torch.no_grad():
        image = build_with_weights(describe(given)).encode_image(IMAGES)
    assert torch.allclose(image, features(clip, pixel_values=IMAGES), atol=1e-5)
    assert refuse_misfit(describe(given)) == "transformers CLIPModel"


# What cannot be loaded


def drop(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def change_json(name: str, **changes: Any) -> Callable[[Path], Any]:
    """Changes of keys; `vision__hidden_act` is `hidden_act` in `vision_config`."""

    def change(folder: Path) -> None:
        parsed = json.loads((folder / name).read_text())
        for key, value in changes.items():
            section, _, inner = key.rpartition("__")
            (parsed[f"{section}_config"] if section else parsed)[inner] = value
        (folder / name).write_text(json.dumps(parsed))

    return change


def change_state(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], Any]:
    return lambda folder: save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def only(prefix: str) -> Callable[[Path], Any]:
    return change_state(lambda state: {name: value for name, value in state.items() if name.startswith(prefix)})


def other_merges(folder: Path) -> None:
    (folder / "merges.txt").write_text("#version: 0.2\na b\nab c\n")


def index_of_a_missing_file(folder: Path) -> None:
    as_index(folder, "model.safetensors")
    (folder / "model-00001-of-00002.safetensors").unlink()


def index_that_leads_elsewhere(folder: Path) -> None:
    as_index(folder, "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("model.safetensors"), r"my-clip holds no weights: expected model.safetensors, .*; found config\.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), r"cannot read .*model\.safetensors .* is it damaged"),
        (lambda f: (f / "config.json").write_text("{"), r"cannot read .*config\.json: "),
        (lambda f: (f / "config.json").write_text("[1]"), r"config\.json holds a list, not keys"),
        (change_json("config.json", model_type="blip"), r"describes a model of type 'blip'; expected clip or siglip"),
        (change_json("config.json", model_type="siglip"), r"says .*SiglipModel, and its tensors are .*CLIPModel"),
        (change_json("config.json", vision__hidden_act="relu"), r"hidden_act is quick_gelu and relu: expected one of"),
        (change_json("config.json", vision__hidden_act="gelu"), r"hidden_act is gelu and quick_gelu: .* both towers"),
        (change_json("config.json", vision__image_size="big"), r"vision_config\.image_size must be a whole number"),
        (change_json("config.json", vision__num_attention_heads=7), r"64 cannot be shared among 7 heads"),
        (change_json("config.json", vision__num_channels=1), r"num_channels is 1: expected images of 3 channels"),
        (change_json("config.json", vision__image_size=64), r"does not fit .*config\.json.*positional_embedding: \(65"),
        (change_json("config.json", vision__num_hidden_layers=4), r"does not fit .*12 tensors are missing"),
        (change_json("config.json", text__num_hidden_layers=1), r"does not fit .*12 tensors are not the model's"),
        (change_json("config.json", text__vocab_size=1000), r"vocabulary has 1000 tokens: expected CLIP's own"),
        (drop("config.json"), r"nothing says what model this is .* none of open_clip's models: 32 px, patches of 8"),
        (change_json("preprocessor_config.json", resample=1), r"resample is 1: expected 2 \(bilinear\) or 3"),
        (change_json("preprocessor_config.json", rescale_factor=1.0), r"scaled by 1\.0: expected colours from 0 to 1"),
        (change_json("preprocessor_config.json", image_mean=[0.5]), r"image_mean must be three numbers, got \[0\.5\]"),
        (only("vision_model."), r"found an image tower of transformers without a text tower; expected"),
        (only("text_model."), r"found a text tower of transformers without an image tower; expected"),
        (change_state(lambda s: {f"base_model.model.{k}": v for k, v in s.items()}), r"found an adapter \(PEFT\)"),
        (change_state(lambda s: {"layer.weight": s["logit_scale"]}), r"is no CLIP that is known: found tensors"),
        (other_merges, r"merges\.txt is not the vocabulary of CLIP"),
        (index_of_a_missing_file, r"names 2 files, of which 1 are missing, such as model-00001"),
        (index_that_leads_elsewhere, r"does not name weight files of its own folder"),
        (lambda f: [shutil.copy(f / "model.safetensors", f / f"{k}.pt") for k in "ab"] and drop("model.safetensors")(f),
         r"holds 2 files of weights \(a\.pt, b\.pt\): give the one that is meant"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_said_in_one_line(
    change: Callable[[Path], Any], message: str, clip_folder: Path
) -> None:
    change(clip_folder)
    with pytest.raises(PhraseboxError, match=message) as caught:
        refuse_misfit(describe(config_of(clip_folder)))
    assert str(caught.value).startswith("model.checkpoint: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("spiece.model"), r"no tokenizer\.json or spiece\.model in .*my-siglip: save the model's tokenizer"),
        (drop("config.json"), r"tensors are of no SigLIP that is known .*64.*put its config\.json beside them"),
        (change_json("config.json", vision__vision_use_head=False), r"vision_use_head is false"),
        (change_json("config.json", text__projection_size=32), r"texts have embeddings of 32 numbers and images of 64"),
        (lambda f: (f / "spiece.model").write_bytes(b"no model"), r"cannot read the tokenizer .*spiece\.model"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), r"cannot read the tokenizer .*tokenizer\.json"),
        (change_json("tokenizer_config.json", eos_token="<end>"), r"spiece\.model has no token <end>"),
        (lambda f: (f / "tokenizer_config.json").write_text("{"), r"cannot read .*tokenizer_config\.json"),
    ],
)  # fmt: skip
def test_a_siglip_that_cannot_be_loaded_is_said_in_one_line(
    change: Callable[[Path], Any], message: str, siglip_folder: Path
) -> None:
    change(siglip_folder)
    with pytest.raises(PhraseboxError, match=message) as caught:
        tokenizer_of(describe(config_of(siglip_folder)))
    assert str(caught.value).startswith("model.checkpoint: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["sentencepiece", "tokenizers"])
def test_a_tokenizer_says_which_package_it_takes(
    package: str, siglip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "tokenizers":
        (siglip_folder / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("stages.model.own_tokenizer.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        tokenizer_of(describe(config_of(siglip_folder)))


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.checkpoint: no file or folder .*gone"):
        describe(config_of(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"holds no weights: .*the folder is empty"):
        describe(config_of(tmp_path / "empty"))
