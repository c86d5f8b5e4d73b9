"""Segmenters of each architecture, small and with random weights, as transformers saves them."""

from pathlib import Path
from typing import Any, Final

import torch
import transformers as hf
from transformers.utils import logging

from tests.build.datasets import Json
from tests.stages.model.detectors import VIT3

SIDE: Final = 128  # Pixels of the encoder's input, on 8 x 8 patches

_VIT = {
    "image_size": SIDE,
    "patch_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_dim": 64,
}
_VIT |= {
    "hidden_size": 32,
    "output_channels": 32,
    "num_pos_feats": 16,
    "global_attn_indexes": [1],
    "window_size": 4,
}
_DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_DECODER |= {"iou_head_hidden_dim": 32}
_PROMPTS = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
_FEATURES = {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]], "fpn_hidden_size": 32}
_HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 16,
    "num_attention_heads": 1,
    "image_size": [SIDE, SIDE],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [16, 32, 64, 128],
    "global_attention_blocks": [3],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 4, 4],
    "window_positional_embedding_background_size": [4, 4],
}


def _sam(kind: str) -> tuple[Any, Any, Any]:
    config, model = (hf.SamConfig, hf.SamModel) if kind == "sam" else (hf.SamHQConfig, hf.SamHQModel)
    decoder = _DECODER if kind == "sam" else {**_DECODER, "vit_dim": 32}
    prompts = {**_PROMPTS, "image_embedding_size": SIDE // 16}
    segmenter = model(
        config(vision_config=_VIT, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )
    images = hf.SamImageProcessor(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
    return segmenter, images, (hf.SamProcessor if kind == "sam" else hf.SamHQProcessor)(images)


def _sam2(kind: str) -> tuple[Any, Any, Any]:
    vision: Json = {**_FEATURES, "backbone_config": _HIERA, "backbone_channel_list": [128, 64, 32, 16]}
    config = hf.Sam2Config
    model = hf.Sam2Model
    processor = hf.Sam2Processor
    images = hf.Sam2ImageProcessor
    if kind == "edgetam":
        arguments = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
        backbone = hf.TimmWrapperConfig(architecture="repvit_m1", model_args=arguments)
        vision |= {"backbone_config": backbone, "backbone_channel_list": [384, 192, 96, 48]}
        config = hf.EdgeTamConfig
        model = hf.EdgeTamModel
    if kind == "sam3_tracker":
        vision = {**_FEATURES, "backbone_config": VIT3}
        config = hf.Sam3TrackerConfig
        model = hf.Sam3TrackerModel
        processor = hf.Sam3TrackerProcessor
        images = hf.Sam3ImageProcessor
    segmenter = model(
        config(vision_config=vision, prompt_encoder_config=_PROMPTS, mask_decoder_config=_DECODER)
    )
    resize = images(size={"height": SIDE, "width": SIDE})
    return segmenter, resize, processor(resize, target_size=SIDE)


KINDS: Final = {"sam": _sam, "sam_hq": _sam, "sam2": _sam2, "edgetam": _sam2, "sam3_tracker": _sam2}


def save_segmenter(kind: str, folder: Path, seed: int = 0) -> tuple[Any, Any]:
    """Save a model, and return it with transformers' own processor for its prompts."""
    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, images, processor = KINDS[kind](kind)
        with torch.no_grad():
            for weight in model.parameters():
                if (
                    weight.dim() > 1
                ):  # as transformers draws them, logits are some 1e-5 and the image changes nothing
                    weight.normal_(0, 1.5 / weight[0].numel() ** 0.5)
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    return model.eval(), processor
