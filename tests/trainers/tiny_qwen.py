"""A Qwen2.5-VL with random weights and a vocabulary of bytes, for which nothing is downloaded."""

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

MARKS = (
    "endoftext",
    "im_start",
    "im_end",
    "vision_start",
    "vision_end",
    "vision_pad",
    "image_pad",
    "video_pad",
)


def write_qwen(folder: Path) -> Path:
    """The folder of a model, as transformers and ms-swift load it: two layers each of 32 features, see and read."""
    marks = [f"<|{mark}|>" for mark in MARKS]
    vocabulary = {token: number for number, token in enumerate([*sorted(ByteLevel.alphabet()), *marks])}
    ids = {mark: vocabulary[f"<|{mark}|>"] for mark in MARKS}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=marks)
    Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor()).save_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64}
    text = {
        **shape,
        "vocab_size": len(vocabulary),
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        "bos_token_id": ids["endoftext"],
        "eos_token_id": ids["im_end"],
        "pad_token_id": ids["endoftext"],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            **shape,
            "depth": 2,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    return folder
