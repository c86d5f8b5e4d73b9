"""What images mean whose pixels are hidden in an order of their own: the model's side of insertion and deletion.

The masks and the areas under the curves are `pipeline.evaluate.faithfulness`'s, which needs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.explainers.perturbation.masked import baseline_image, blurred, masked_embeddings
from stages.shared.model.clip import ClipModel
from stages.shared.model.texts import TextCache

BLUR_SHARE: Final = 5 / 224
"""Standard deviation of the blur that insertion begins with, as a share of the shorter side: 5 px of 224 as in RISE's
code, whose kernel of 11 px cuts the Gaussian off at one deviation and so blurs less."""


MASKS_PER_STEP: Final = {"cpu": 8, "cuda": 64}
"""Masked images in one forward pass. On CPUs more are slower, because what they give no longer fits the caches."""


def hidden_pixels(model: ClipModel, rgb: NDArray[np.uint8], name: str, seed: int) -> NDArray[np.float32]:
    """What stands where an image (height, width, 3) is hidden, in 0-255: mean, blur, black or random.

    The random colours depend on the seed and the size alone.
    """
    if name == "random":
        colours = np.random.default_rng(seed).integers(0, 256, rgb.shape)
        return colours.astype(np.float32)
    image = torch.from_numpy(rgb)
    if name == "blur":
        pixels = blurred(image.to(model.device, torch.float32), BLUR_SHARE * min(rgb.shape[:2]))
    else:
        pixels = baseline_image(model.tower, image, "black" if name == "black" else "mean")
    found: NDArray[np.float32] = pixels.cpu().numpy().astype(np.float32)
    return found


def masked_cosines(
    model: ClipModel,
    rgb: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    hidden: NDArray[np.float32],
    texts: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Cosines (N, P) of an image (height, width, 3) under N masks (N, height, width) and P unit texts (P, E)."""
    step = MASKS_PER_STEP["cuda" if model.device.type == "cuda" else "cpu"]
    pixels, seen, baseline = (torch.from_numpy(array) for array in (rgb, masks, hidden))
    embeddings = masked_embeddings(model.tower, pixels, seen, baseline, step)
    found: NDArray[np.float64] = embeddings.double().cpu().numpy() @ texts.T.astype(np.float64)
    return found


@torch.no_grad()
def image_embeddings(model: ClipModel, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unit embeddings (B, E) of images (B, height, width, 3), by the whole image tower and nothing else."""
    embeddings: Tensor = F.normalize(model.tower.encode(torch.from_numpy(rgb)).float(), dim=-1)
    found: NDArray[np.float32] = embeddings.cpu().numpy()
    return found


def text_embeddings(model: ClipModel, texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit embeddings (T, E) of texts."""
    found: NDArray[np.float32] = TextCache(model)(texts).cpu().numpy()
    return found
