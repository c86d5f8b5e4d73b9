"""The embedded model names things in scenes that it never saw, loaded by stock open_clip and nothing of ours."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file

from stages.model.scenes.scene import make_scene, resize_image
from stages.model.weights.resolve import resolve

SCENES = 40


def test_it_tells_what_is_there_from_what_is_not() -> None:
    files = resolve("demo")
    settings = json.loads(files.config.read_text("utf-8"))
    architecture, preprocess = settings["model_cfg"], settings["preprocess_cfg"]
    model = open_clip.CLIP(**architecture).eval()
    model.load_state_dict(load_file(files.weights))
    text_cfg = architecture["text_cfg"]
    tokenizer = SimpleTokenizer(
        bpe_path=str(files.config.parent / text_cfg["tokenizer_kwargs"]["bpe_path"]),
        context_length=text_cfg["context_length"],
    )
    assert tokenizer.vocab_size == text_cfg["vocab_size"]

    scenes = [make_scene(99, k, side_px=360, max_objects=1) for k in range(SCENES)]
    phrases = [f"{scene.objects[0].colour} {scene.objects[0].kind}" for scene in scenes]
    pixels = np.stack([resize_image(scene.image, preprocess["size"]) for scene in scenes])
    images = (pixels / 255.0 - preprocess["mean"]) / preprocess["std"]
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(images).float().permute(0, 3, 1, 2), normalize=True)
        text = model.encode_text(tokenizer(phrases), normalize=True)
    similarity = (image @ text.T).numpy()
    own = similarity.diagonal()
    ranks = (similarity > own[:, None]).sum(axis=1)
    assert (ranks == 0).mean() > 0.7
    assert (ranks < 5).mean() > 0.9
