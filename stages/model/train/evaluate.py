"""How well a model names things in held-out scenes, for the log and the model card."""

from __future__ import annotations

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from stages.model.scenes.scene import make_scene, resize_image
from stages.model.scenes.vocabulary import COLOUR_NAMES, KINDS
from stages.model.train.batches import normalise
from stages.model.train.concepts import concept_column
from stages.model.train.forward import encode_image, encode_text

_SEED = 4_321


@torch.inference_mode()
def class_top1(model: CLIP, tokenizer: SimpleTokenizer, *, scenes: int, render_scale: float = 1.0) -> float:
    """Share of held-out scenes with one thing whose nearest of all colour-kind phrases is the right one.

    Args:
        model: the model; its image size sets the scenes'.
        tokenizer: its tokenizer.
        scenes: how many scenes; about every seventh shows a pair that training never showed.
        render_scale: draw scenes larger by this factor and average them down.

    Returns:
        0-1; chance is 1 in 360.
    """
    side = int(model.visual.image_size[0])
    phrases = [f"{colour} {kind}" for kind in KINDS for colour in COLOUR_NAMES]
    texts = encode_text(model, tokenizer(phrases))
    images, truth = [], []
    for index in range(scenes):
        scene = make_scene(_SEED, index, side_px=round(side * render_scale), max_objects=1)
        images.append(resize_image(scene.image, side))
        truth.append(concept_column(scene.objects[0].kind, scene.objects[0].colour))
    right = 0
    for first in range(0, scenes, 50):
        block = torch.from_numpy(np.stack(images[first : first + 50])).permute(0, 3, 1, 2)
        best = (encode_image(model, normalise(block)) @ texts.T).argmax(dim=1)
        right += int((best == torch.tensor(truth[first : first + 50])).sum())
    return right / scenes
