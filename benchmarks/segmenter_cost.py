"""What a segmenter costs: `python -m benchmarks.segmenter_cost`, in real sizes with random weights.

Milliseconds of one CPU thread for an image and for each prompt, and the same as multiples of what the image trunk of a
ViT-B-16 takes for an image of 224 px, measure in turns with it.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import torch
import transformers as hf
from transformers.utils import logging

from phrasebox.stages.model.segmenter import Prompt, Segmenter

ROUNDS = 2
PROMPTS = 4


def models() -> dict[str, tuple[Callable[[], Any], Any]]:
    """Name -> the model, and its image processor, with the sizes of the published ones."""
    repvit = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}

    def edgetam() -> Any:
        backbone = hf.TimmWrapperConfig(architecture="repvit_m1", model_args=repvit)
        return hf.EdgeTamModel(hf.EdgeTamConfig(vision_config={"backbone_config": backbone}))

    return {
        "SAM, ViT-B": (lambda: hf.SamModel(hf.SamConfig()), hf.SamImageProcessor()),
        "SAM 2, tiny": (lambda: hf.Sam2Model(hf.Sam2Config()), hf.Sam2ImageProcessor()),
        "EdgeTAM": (edgetam, hf.Sam2ImageProcessor()),
    }


def milliseconds(work: Callable[[], object]) -> float:
    """How long it takes the processor, whatever else the machine does."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


@torch.no_grad()
def measure(segmenter: Segmenter, trunk: Any) -> tuple[float, ...]:
    """Milliseconds of the trunk, of resizing an image, of encoding it, and of a prompt."""
    square = torch.rand(1, 3, 224, 224)
    rgb = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    prompt = Prompt(point_xy_px=(200.0, 200.0), box_xyxy_px=(100.0, 100.0, 300.0, 300.0))
    trunk_ms = milliseconds(lambda: trunk(square))
    resize_ms = milliseconds(lambda: segmenter.prepare(rgb))
    image = segmenter.prepare(rgb)
    encode_ms = milliseconds(lambda: segmenter.encode([image]))
    encoded = segmenter.encode([image])
    one_ms = milliseconds(lambda: segmenter.masks(encoded, [image], [[prompt]]))
    many_ms = milliseconds(lambda: segmenter.masks(encoded, [image], [[prompt] * (1 + PROMPTS)]))
    return trunk_ms, resize_ms, encode_ms, (many_ms - one_ms) / PROMPTS


def main() -> None:
    """Print a JSON line for each model, or for those that are named."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    trunk = open_clip.create_model("ViT-B-16").visual.eval()
    torch.set_num_threads(1)
    for name, (make, processor) in models().items():
        if name in (sys.argv[1:] or [name]):
            segmenter = Segmenter(make().eval(), processor)
            trunk_ms, resize_ms, encode_ms, prompt_ms = np.min(
                [measure(segmenter, trunk) for _ in range(ROUNDS)], axis=0
            )
            figure = {
                "model": name,
                "trunk_ms": trunk_ms,
                "resize_ms": resize_ms,
                "encode_ms": encode_ms,
                "prompt_ms": prompt_ms,
            }
            figure |= {"encode_trunks": encode_ms / trunk_ms, "prompt_trunks": prompt_ms / trunk_ms}
            print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
