"""Tiny models of `transformers` with random weights, saved as people save theirs."""

import warnings
from pathlib import Path
from typing import Any

import open_clip
import sentencepiece
import torch
from torch import Tensor

from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.module import module_of
from phrasebox.stages.model.tokenizer import tokenizer_of
from tests.build.files import write_json
from tests.closeness import assert_close

WORDS = [
    "a",
    "red",
    "car",
    "two",
    "dogs",
    "the",
    "man",
    "on",
    "his",
    "bike",
    "rides",
    "along",
    "green",
    "trees",
]

TEXTS = ["a red car", "Two dogs", "the man on his bike"]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
CLIP_TOKENS = open_clip.tokenize(TEXTS)

TOWER = {"hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE = {"image_size": 32, "patch_size": 8}


def transformers_clip(act: str = "quick_gelu", **text: Any) -> Any:
    """A CLIPModel whose layers do what trained ones do: attention is not uniform, and no norm is the identity."""
    from transformers import CLIPConfig, CLIPModel

    vision = {**TOWER, **IMAGE, "hidden_act": act}
    words = {**TEXT, "hidden_act": act, **text}
    return random_weights(CLIPModel(CLIPConfig(text_config=words, vision_config=vision, projection_dim=48)))


def transformers_siglip(act: str = "gelu_pytorch_tanh", **text: Any) -> Any:
    """A SiglipModel with a vocabulary of 60 pieces and texts of 16 tokens."""
    from transformers import SiglipConfig, SiglipModel

    words = {**TEXT, "hidden_act": act, "vocab_size": 60, "max_position_embeddings": 16, **text}
    words |= {"bos_token_id": 0, "eos_token_id": 1}
    return random_weights(
        SiglipModel(SiglipConfig(text_config=words, vision_config={**TOWER, **IMAGE, "hidden_act": act}))
    )


def random_weights(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            shift = 1.0 if parameter.ndim == 1 and parameter.mean() == 1 else 0.0
            scale = 0.2 if parameter.ndim < 2 else 2.0 * parameter.shape[-1] ** -0.5
            parameter.copy_(shift + scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def features(model: Any, **inputs: Tensor) -> Tensor:
    """What `get_image_features` or `get_text_features` give, in every version of transformers."""
    encode = model.get_image_features if "pixel_values" in inputs else model.get_text_features
    with torch.no_grad():
        output = encode(**inputs)
    return getattr(output, "pooler_output", output)


def save_images(folder: Path, **settings: Any) -> None:
    """The preprocessor_config.json of CLIP, with settings."""
    mean = [0.48145466, 0.4578275, 0.40821073]
    std = [0.26862954, 0.26130258, 0.27577711]
    usual = {
        "image_mean": mean,
        "image_std": std,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    }
    write_json(folder / "preprocessor_config.json", {**usual, **settings})


def save_sentencepiece(folder: Path) -> Any:
    """A vocabulary of 60 pieces in the form of SigLIP's, and transformers' own tokenizer for it."""
    from transformers import SiglipTokenizer

    with (folder / "words.txt").open("w") as file:
        file.writelines(f"{' '.join(WORDS[k:] + WORDS[:k])}\n" for k in range(len(WORDS)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "words.txt"), model_prefix=str(folder / "spiece"), vocab_size=60, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, eos_piece="</s>", minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "words.txt").unlink()
    (folder / "spiece.vocab").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = SiglipTokenizer(str(folder / "spiece.model"))
    names = {
        "tokenizer_class": "SiglipTokenizer",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
    }
    write_json(folder / "tokenizer_config.json", names)
    return tokenizer


def config_of(path: Path) -> ModelConfig:
    return ModelConfig(checkpoint=path, device="cpu", precision="fp32", threads=1)


def embeddings(path: Path) -> tuple[Tensor, Tensor]:
    """Of IMAGES and TEXTS, by the model and the tokenizer of a checkpoint."""
    description = describe(config_of(path))
    model = module_of(description)
    tokenizer = tokenizer_of(description)
    with torch.no_grad():
        return model.encode_image(IMAGES), model.encode_text(tokenizer(TEXTS))


def assert_same(embeddings: tuple[Tensor, Tensor], model: Any, tokens: Tensor) -> None:
    """Embeddings are those of `transformers` but for rounding, of images and of texts."""
    expected = features(model, pixel_values=IMAGES), features(model, input_ids=tokens)
    for embedding, feature in zip(embeddings, expected, strict=True):
        assert feature.std() > 0.1
        assert_close(embedding, feature)


def assert_embeds_as(path: Path, model: Any) -> None:
    """Embeddings of a checkpoint are those of a model of open_clip but for rounding."""
    image, text = embeddings(path)
    with torch.no_grad():
        assert_close(image, model.encode_image(IMAGES))
        assert_close(text, model.encode_text(CLIP_TOKENS))


def siglip_tokens(tokenizer: Any, texts: list[str] = TEXTS, length: int = 16) -> Tensor:
    options = {"max_length": length, "padding": "max_length", "truncation": True}
    return tokenizer(texts, return_tensors="pt", **options).input_ids
