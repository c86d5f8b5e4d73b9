"""Heat maps against `encode_image`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import open_clip
import torch

from pipeline.bench.timing import line, ratio_of
from stages.explain.grad_eclip import GradEclip, GradEclipConfig
from stages.shared.model.device import PRECISIONS, device_name, fast_precision, pick_device
from stages.shared.model.load import from_open_clip

IMAGES: Final = 8

WORDS: Final = [
    "dog",
    "cat",
    "red car",
    "old house",
    "tall man",
    "woman",
    "green tree",
    "table",
    "street",
    "blue bicycle",
]

LAST_BLOCK: Final = GradEclipConfig(blocks=1)


def heat_maps() -> list[dict[str, Any]]:
    """Time of heat maps for a batch over the time of `encode_image` for the same batch.

    ViT-B-16, 224 px, batch 8, fp32, on the GPU if there is one. Text embeddings are cached, as in a run after its first
    batches. On a processor or GPU that computes bf16 fast, the time with a bf16 trunk is measured too.
    """
    device = pick_device("auto")
    model = open_clip.create_model("ViT-B-16", device=device).eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    precisions = {"fp32", fast_precision(device)}
    clips = {p: from_open_clip(model, tokenizer, name="ViT-B-16", precision=PRECISIONS[p]) for p in precisions}
    rgb = np.random.default_rng(0).integers(0, 256, (IMAGES, 224, 224, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255).to(device)

    def encode() -> None:
        with torch.inference_mode():
            model.encode_image(pixels).cpu()  # which waits for a GPU

    cases = {
        "heatmaps_8_vs_encode_image": (8, LAST_BLOCK, "fp32"),
        "heatmaps_32_vs_encode_image": (32, LAST_BLOCK, "fp32"),
        "heatmaps_8_blocks4_vs_encode_image": (8, GradEclipConfig(blocks=4), "fp32"),
        "heatmaps_8_authors_vs_encode_image": (8, GradEclipConfig(variant="authors", image_size="model"), "fp32"),
        "heatmaps_8_bf16_vs_encode_image": (8, LAST_BLOCK, "bf16"),
    }
    lines = []
    against = f"encode_image, ViT-B-16, 224 px, batch {IMAGES}, fp32, {device_name(device)}"
    for name, (count, config, precision) in cases.items():
        if precision not in clips:
            continue
        explainer = GradEclip(config, clips[precision])
        texts = [[f"{WORDS[i % len(WORDS)]} {i // len(WORDS)}" for i in range(count)]] * IMAGES
        ratio = ratio_of(lambda e=explainer, t=texts: e.explain(rgb, t), encode)  # type: ignore[misc]
        lines.append(line(name, ratio, "ratio", against))
    return lines
