"""Small dual encoders of `transformers` with random weights, saved as people save theirs."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, trainers
from torch import Tensor

from tests.build.files import write_json
from tests.stages.model.hugging_face import IMAGE, TEXT, TOWER, WORDS, random_weights, save_images

POSITIONS = 16
"""Tokens of the longest text, which is shorter than that of any real model."""

LETTERS = [*"abcdefghijklmnopqrstuvwxyz"]


class Sample(NamedTuple):
    """A model with its tokenizer, and how transformers' own processor calls it."""

    model: Any
    tokenizer: Any
    options: dict[str, Any]
    images: dict[str, Any]


def save_dual_encoder(sample: Sample, folder: Path) -> Path:
    """The folder of a model as `save_pretrained` writes it."""
    sample.model.save_pretrained(folder)
    sample.tokenizer.save_pretrained(folder)
    if sample.images:
        save_images(folder, **sample.images)
    return folder


def text_features(sample: Sample, texts: list[str], length: int = POSITIONS) -> Tensor:
    """Embeddings of texts by transformers alone, all in one batch; `length` is that of the context."""
    inputs = sample.tokenizer(
        texts, return_tensors="pt", truncation=True, max_length=length, **sample.options
    )
    if sample.options.get("padding") == "max_length" and not sample.options.get(
        "return_attention_mask", True
    ):
        inputs = {"input_ids": inputs["input_ids"]}
    with torch.no_grad():
        output: Tensor = sample.model.get_text_features(**inputs).pooler_output
    return output


def image_features(sample: Sample, pixels: Tensor) -> Tensor:
    """Embeddings of normalised images (B, 3, height, width) by transformers alone."""
    with torch.no_grad():
        if sample.model.config.model_type == "siglip2":
            side = sample.model.config.vision_config.patch_size
            rows, columns = (length // side for length in pixels.shape[2:])
            patches = pixels.unfold(2, side, side).unfold(3, side, side)
            inputs = {
                "pixel_values": patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2),
                "pixel_attention_mask": torch.ones(len(pixels), rows * columns, dtype=torch.long),
                "spatial_shapes": torch.tensor([[rows, columns]] * len(pixels)),
            }
        else:
            inputs = {"pixel_values": pixels}
            if sample.model.config.model_type != "tipsv2":
                inputs["interpolate_pos_encoding"] = True  # type: ignore[assignment]
        output: Tensor = sample.model.get_image_features(**inputs).pooler_output
    return output


# --- tokenizers


def _roberta() -> Any:
    from transformers import XLMRobertaTokenizer

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS if len(word) > 1]
    return XLMRobertaTokenizer(vocab=[*pieces, ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)])


def _bert() -> Any:
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "红", "色", "汽", "车"]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def _merged(special: list[str]) -> dict[str, Any]:
    """A trained vocabulary of pairs, for the tokenizers of Google's models."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=58, special_tokens=special, show_progress=False)  # type: ignore[call-arg]
    tokenizer.train_from_iterator([f"▁{word}" for word in WORDS], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return {"vocab": trained["vocab"], "merges": [tuple(pair) for pair in trained["merges"]]}


# --- models


def _tower(**changes: Any) -> dict[str, Any]:
    return {**TOWER, **IMAGE, **changes}


def _texts(**changes: Any) -> dict[str, Any]:
    return {**TEXT, "vocab_size": 60, "max_position_embeddings": POSITIONS, **changes}


def _metaclip_2() -> Sample:
    from transformers import MetaClip2Config, MetaClip2Model

    texts = _texts(bos_token_id=0, pad_token_id=1, eos_token_id=2)
    config = MetaClip2Config(text_config=texts, vision_config=_tower(), projection_dim=48)
    return Sample(
        random_weights(MetaClip2Model(config)), _roberta(), {"padding": True}, {"do_normalize": True}
    )


def _siglip2() -> Sample:
    from transformers import Siglip2Config, Siglip2Model, Siglip2Tokenizer

    texts = _texts(projection_size=64, bos_token_id=2, eos_token_id=1, pad_token_id=0)
    config = Siglip2Config(text_config=texts, vision_config=_tower(num_patches=16))
    tokenizer = Siglip2Tokenizer(
        **_merged(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]), padding_side="right"
    )
    options = {"padding": "max_length", "return_attention_mask": False}
    return Sample(
        random_weights(Siglip2Model(config)),
        tokenizer,
        options,
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    )


def _tipsv2(**vision: Any) -> Sample:
    from transformers import Tipsv2Config, Tipsv2Model, Tipsv2Tokenizer

    tower = _tower(num_register_tokens=2, mlp_ratio=1.5, **vision)
    del tower["intermediate_size"]
    config = Tipsv2Config(text_config=_texts(), vision_config=tower)
    model = random_weights(Tipsv2Model(config))
    with torch.no_grad():
        model.temperature.fill_(0.02)
    tokenizer = Tipsv2Tokenizer(**_merged(["<pad>", "<unk>"]))
    return Sample(model, tokenizer, {"padding": "max_length"}, {"do_normalize": False, "resample": 2})


def _altclip() -> Sample:
    from transformers import AltCLIPConfig, AltCLIPModel

    texts = _texts(project_dim=40, max_position_embeddings=POSITIONS + 2, type_vocab_size=1, pad_token_id=1)
    config = AltCLIPConfig(text_config=texts, vision_config=_tower(), projection_dim=48)
    return Sample(
        random_weights(AltCLIPModel(config)), _roberta(), {"padding": True}, {"do_normalize": True}
    )


def _chinese_clip() -> Sample:
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    config = ChineseCLIPConfig(text_config=_texts(), vision_config=_tower(), projection_dim=48)
    return Sample(
        random_weights(ChineseCLIPModel(config)), _bert(), {"padding": True}, {"do_normalize": True}
    )


KINDS: dict[str, Callable[[], Sample]] = {
    "metaclip_2": _metaclip_2,
    "siglip2": _siglip2,
    "tipsv2": _tipsv2,
    "tipsv2, gated": functools.partial(_tipsv2, use_swiglu_ffn=True),
    "altclip": _altclip,
    "chinese_clip": _chinese_clip,
}
"""Every kind of dual encoder as a small model."""


def real_sample_of(kind: str) -> Sample:
    """A model with the sizes of its class's defaults, but for its vocabulary."""
    small = sample_of(kind)
    config_class = type(small.model.config)
    text = small.model.config.text_config
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    vision = {"use_swiglu_ffn": True, "num_hidden_layers": 2} if "gated" in kind else {}
    config = config_class(text_config={name: getattr(text, name) for name in names}, vision_config=vision)
    torch.manual_seed(0)
    return small._replace(model=type(small.model)(config).eval())


@functools.cache
def sample_of(kind: str) -> Sample:
    """A model that no test changes."""
    return KINDS[kind]()


def change_config(folder: Path, section: str, **changes: Any) -> None:
    """Change keys in a section of `config.json`, or outside of all with an empty name."""
    path = folder / "config.json"
    parsed = json.loads(path.read_text())
    (parsed[section] if section else parsed).update(changes)
    write_json(path, parsed)
