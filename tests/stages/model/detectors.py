"""Detectors of each architecture, small and with random weights, as transformers saves them."""

import warnings
from pathlib import Path
from typing import Any, Final

import torch
import transformers as hf
from transformers.utils import logging

SIDE: Final = 128  # Pixels of the encoder's input

WORDS: Final = ("red", "car", "two", "dogs", "a", "road", "detect", ",", ".")

_SWIN: Final = {
    "model_type": "swin",
    "image_size": SIDE,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 2],
    "window_size": 4,
    "out_indices": [2, 3, 4],
}
_LAYERS: Final = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
_TOWER: Final = {**_LAYERS, "num_hidden_layers": 2}
VIT3: Final = {
    "model_type": "sam3_vit_model",
    **_TOWER,
    "image_size": SIDE,
    "pretrain_image_size": SIDE,
    "patch_size": 16,
    "window_size": 4,
    "global_attn_indexes": [1],
}
"""The image encoder of SAM 3."""

_DETR: Final = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 40}
_HEADS: Final = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
_WIDTHS: Final = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_SIZE: Final = {"height": SIDE, "width": SIDE}


def _bert_tokenizer(folder: Path) -> Any:
    vocabulary = folder / "vocab.txt"
    letters = [chr(code) for code in range(97, 123)]
    pieces = [*WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(pieces)]))
    return hf.BertTokenizerFast(vocab=str(vocabulary), model_max_length=64)


def _clip_tokenizer(length: int) -> Any:
    letters = [chr(code) for code in range(97, 123)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), ",</w>", ".</w>"]
    names = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *names])}
    return hf.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def _grounding(kind: str, folder: Path) -> tuple[Any, Any]:
    is_mm = kind == "mm-grounding-dino"
    config = hf.MMGroundingDinoConfig if is_mm else hf.GroundingDinoConfig
    model = hf.MMGroundingDinoForObjectDetection if is_mm else hf.GroundingDinoForObjectDetection
    tokenizer = _bert_tokenizer(folder)
    text = {"model_type": "bert", **_TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    settings = config(
        backbone_config=_SWIN, text_config=text, max_text_len=24, **_DETR, **_HEADS, **_WIDTHS
    )
    images = hf.GroundingDinoImageProcessor(size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE})
    return model(settings), hf.GroundingDinoProcessor(images, tokenizer)


def _omdet(kind: str, folder: Path) -> tuple[Any, Any]:
    tokenizer = _clip_tokenizer(77)
    width = 48  # the decoder's has to be another
    tower = {**_TOWER, "hidden_size": width, "projection_dim": width}
    text = {"model_type": "clip_text_model", **tower, "vocab_size": len(tokenizer)}
    settings = hf.OmDetTurboConfig(
        backbone_config=_SWIN,
        text_config={**text, "eos_token_id": len(tokenizer) - 1},
        image_size=SIDE,
        apply_layernorm_after_vision_backbone=False,
        text_projection_in_dim=width,
        text_projection_out_dim=width,
        task_encoder_hidden_dim=width,
        class_embed_dim=width,
        num_queries=40,
        encoder_hidden_dim=32,
        vision_features_channels=(32, 32, 32),
        encoder_in_channels=(16, 32, 64),
        encoder_attention_heads=2,
        encoder_dim_feedforward=64,
        decoder_hidden_dim=32,
        decoder_num_heads=2,
        decoder_num_layers=2,
        decoder_dim_feedforward=64,
    )
    images = hf.DetrImageProcessor(size=_SIZE, do_pad=False)
    return hf.OmDetTurboForObjectDetection(settings), hf.OmDetTurboProcessor(images, tokenizer)


def _owl(kind: str, folder: Path) -> tuple[Any, Any]:
    is_second = kind == "owlv2"
    config = hf.Owlv2Config if is_second else hf.OwlViTConfig
    model = hf.Owlv2ForObjectDetection if is_second else hf.OwlViTForObjectDetection
    tokenizer = _clip_tokenizer(16)
    text = {**_TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    settings = config(
        text_config=text,
        vision_config={**_TOWER, "image_size": SIDE, "patch_size": 16},
        projection_dim=32,
    )
    images = hf.Owlv2ImageProcessor(size=_SIZE) if is_second else hf.OwlViTImageProcessor(size=_SIZE)
    processor = hf.Owlv2Processor if is_second else hf.OwlViTProcessor
    return model(settings), processor(images, tokenizer)


def _sam3(kind: str, folder: Path) -> tuple[Any, Any]:
    tokenizer = _clip_tokenizer(32)
    sizes = [[32, 32], [16, 16], [8, 8], [4, 4]]
    features = {"backbone_feature_sizes": sizes, "fpn_hidden_size": 32}
    decoder = {**_LAYERS, "num_layers": 2}
    settings = hf.Sam3Config(
        vision_config={"backbone_config": VIT3, **features},
        text_config={
            **_TOWER,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 32,
            "projection_dim": 32,
        },
        geometry_encoder_config=decoder,
        detr_encoder_config=decoder,
        detr_decoder_config={**decoder, "num_queries": 20},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    return hf.Sam3Model(settings), hf.Sam3Processor(hf.Sam3ImageProcessor(size=_SIZE), tokenizer)


KINDS: Final = {
    "grounding-dino": _grounding,
    "mm-grounding-dino": _grounding,
    "omdet-turbo": _omdet,
    "owlv2": _owl,
    "owlvit": _owl,
    "sam3": _sam3,
}


def save_detector(kind: str, folder: Path, seed: int = 0) -> tuple[Any, Any]:
    """Save a model, and return it with its processor."""
    logging.disable_progress_bar()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model, processor = KINDS[kind](kind, folder)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(0, 1.5 / weight[0].numel() ** 0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval(), processor
