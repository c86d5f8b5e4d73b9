"""Insertion and deletion: does an image lose its phrase where the heat map is hot, and does the hot part alone keep it?

Pixels are taken in the order of their heat. Deletion hides the hottest ones first, and the faster the phrase's score
falls the smaller the area under its curve. Insertion begins with an image of which nothing is seen and shows the
hottest ones first, and the faster the score rises the larger the area. Two protocols, by name:

rise      Petsiuk, Das, Saenko, "RISE" (BMVC 2018, arXiv 1806.07421), `CausalMetric`. Deletion hides behind the mean
          colour of the model's normalisation, which is 0 there; insertion begins with a blurred image. Both continue to
          the whole image, in steps of 224 pixels; the score is the probability of a class.
authors   Zhao et al., Grad-ECLIP (ICML 2024, arXiv 2502.18816). Deletion hides behind pixels of random colours,
          insertion begins with a black image. Both stop at half of the pixels, in steps of one in 200, and the score is
          read at every tenth step: the accuracy over ImageNet's classes.

Deviations: the score is the model's own probability of the phrase (`probability`), among a set of phrases where its
logits have no bias, because a caption's phrases are no classes of which one is right; the curves are read at fewer
shares (`PROTOCOLS`), closer together where few pixels are changed, because there the curves are steep and every point
costs a forward pass. `CurveProtocol.shares` in the papers' steps restores theirs. Pixels of equal heat, such as those
where a map is 0, are taken from where the map is hot outwards.

The area is the trapezoidal one, divided by the range of the shares: 0 .. 1 for a probability, whatever the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit, softmax

from pipeline.evaluate.matching import draw_map
from stages.contract.records import HeatMap
from stages.explainers.perturbation.masked import baseline_image, blurred, masked_embeddings
from stages.shared.model.clip import ClipModel, TextCache

Floats = NDArray[np.float64]

TIE_BLUR: Final = 0.1
"""Standard deviation of the blur that orders pixels of equal heat, as a share of the image's shorter side."""

BLUR_SHARE: Final = 5 / 224
"""Standard deviation of the blur that insertion begins with, as a share of the shorter side: 5 px of 224 as in RISE's
code, whose kernel of 11 px cuts the Gaussian off at one deviation and so blurs less."""

MASKS_PER_STEP: Final = {"cpu": 8, "cuda": 64}
"""Masked images in one forward pass. On CPUs more are slower, because their activations no longer fit the caches."""

Hidden = Literal["mean", "blur", "random", "black"]
"""The pixels of hidden parts: mean colour of the model's normalisation, the blurred image, random colours, or black."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveProtocol:
    """How a curve is drawn: the pixels of hidden parts, whether the hottest pixels are shown or hidden first, and the
    shares of the pixels that have changed at each point of the curve, rising from 0."""

    hidden: Hidden
    inserts: bool
    shares: tuple[float, ...]


_TO_ALL: Final = (0.0, 0.05, 0.15, 0.35, 0.65, 1.0)
_TO_HALF: Final = (0.0, 0.05, 0.15, 0.3, 0.5)
_ENDS: Final = (0.0, 1.0)

PROTOCOLS: Final[dict[str, CurveProtocol]] = {
    "deletion_rise": CurveProtocol(hidden="mean", inserts=False, shares=_TO_ALL),
    "insertion_rise": CurveProtocol(hidden="blur", inserts=True, shares=_TO_ALL),
    "deletion_authors": CurveProtocol(hidden="random", inserts=False, shares=_TO_HALF),
    "insertion_authors": CurveProtocol(hidden="black", inserts=True, shares=_TO_HALF),
}
"""Name of the figure -> its protocol."""


def masks_of(maps: int) -> int:
    """Return the number of masked images in `curve_areas` of an image, by its number of maps."""
    shares = [share for protocol in PROTOCOLS.values() for share in protocol.shares]
    ends = sum(share in _ENDS for share in shares)
    return ends + maps * (len(shares) - ends)


def curve_areas(
    model: ClipModel,
    rgb: NDArray[np.uint8],
    heats: Mapping[str, HeatMap],
    texts: Sequence[str],
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, dict[str, float]]:
    """Insertion and deletion of an image (height, width, 3) by several heat maps of the first of some texts.

    `texts` are the phrase and those among which its probability is computed; the seed decides the random colours.
    `advance` is called with the number of masked images that the model has embedded, now and then.

    Returns:
        Label -> for each of `PROTOCOLS` the area under the curve of the probability, and of the cosine (`..._cosine`).
    """
    embedded = text_embeddings(model, texts)
    step = _masks_per_step(model)
    done = 0
    found: dict[str, dict[str, float]] = {label: {} for label in heats}
    places = {label: hot_first(draw_map(heat_map, (rgb.shape[0], rgb.shape[1]))) for label, heat_map in heats.items()}
    for name, protocol in PROTOCOLS.items():
        hidden = hidden_pixels(model, rgb, protocol.hidden, seed)
        masks = {label: shown(own, protocol) for label, own in places.items()}
        # Where all or nothing is seen the image is the same by every map.
        ends = [point for point, share in enumerate(protocol.shares) if share in _ENDS]
        between = [point for point in range(len(protocol.shares)) if point not in ends]
        one = next(iter(masks.values()))
        stacked = np.concatenate([one[ends], *(each[between] for each in masks.values())])
        parts = []
        for start in range(0, len(stacked), step):
            parts.append(masked_cosines(model, rgb, stacked[start : start + step], hidden, embedded))
            done += len(parts[-1])
            advance(done)
        cosines = np.concatenate(parts)
        for label, own in zip(masks, np.split(cosines[len(ends) :], len(masks)), strict=True):
            curve = np.empty((len(protocol.shares), len(texts)))
            curve[ends], curve[between] = cosines[: len(ends)], own
            found[label][name] = area_under(protocol.shares, probability(curve, 0, model.logit_scale, model.logit_bias))
            found[label][f"{name}_cosine"] = area_under(protocol.shares, curve[:, 0])
    return found


def hot_first(heat: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the place of each pixel of a map (h, w) in the order of heat: 0 for the hottest.

    Pixels of equal heat are in the order of the blurred map; those that are equal there, too, row by row.
    """
    sigma = TIE_BLUR * min(heat.shape)
    near = cv2.GaussianBlur(heat.astype(np.float64), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    order = np.lexsort((-near.ravel(), -heat.ravel().astype(np.float64)))
    places = np.empty(order.size, np.int64)
    places[order] = np.arange(order.size)
    return places.reshape(heat.shape)


def shown(places: NDArray[np.int64], protocol: CurveProtocol) -> NDArray[np.bool_]:
    """The pixels that are seen at each point of a curve: their places (h, w) by `hot_first` -> (points, h, w)."""
    changed = np.stack([places < round(share * places.size) for share in protocol.shares])
    return changed if protocol.inserts else ~changed


def probability(cosines: Floats, own: int, scale: float, bias: float | None) -> Floats:
    """Return the probability that a model gives phrase number `own`: cosines (points, phrases) -> (points,), 0 .. 1.

    It is the phrase's share of the softmax over all, or with a bias (`ClipModel.logit_bias`) its own sigmoid.
    """
    logits = scale * cosines
    chosen: Floats = softmax(logits, axis=1)[:, own] if bias is None else expit(logits[:, own] + bias)
    return chosen


def area_under(shares: Sequence[float], scores: Floats) -> float:
    """Area under a curve (points,), divided by the range of its shares: the mean height of the curve."""
    return float(np.trapezoid(scores, shares)) / (shares[-1] - shares[0])


def hidden_pixels(model: ClipModel, rgb: NDArray[np.uint8], name: Hidden, seed: int) -> NDArray[np.float32]:
    """Return the pixels of the hidden parts of an image (height, width, 3), in 0-255.

    Random colours depend on the seed and the size alone.
    """
    if name == "random":
        return np.random.default_rng(seed).integers(0, 256, rgb.shape).astype(np.float32)
    image = torch.from_numpy(rgb)
    if name == "blur":
        pixels = blurred(image.to(model.device, torch.float32), BLUR_SHARE * min(rgb.shape[:2]))
    else:
        pixels = baseline_image(model.tower, image, name)
    found: NDArray[np.float32] = pixels.cpu().numpy().astype(np.float32)
    return found


def _masks_per_step(model: ClipModel) -> int:
    return MASKS_PER_STEP["cuda" if model.device.type == "cuda" else "cpu"]


def masked_cosines(
    model: ClipModel,
    rgb: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    hidden: NDArray[np.float32],
    texts: NDArray[np.float32],
) -> Floats:
    """Cosines (N, P) of an image (height, width, 3) under N masks (N, height, width) and P unit texts (P, E)."""
    step = _masks_per_step(model)
    pixels, seen, baseline = (torch.from_numpy(array) for array in (rgb, masks, hidden))
    embeddings = masked_embeddings(model.tower, pixels, seen, baseline, step)
    found: Floats = embeddings.double().cpu().numpy() @ texts.T.astype(np.float64)
    return found


@torch.no_grad()
def image_embeddings(model: ClipModel, rgb: NDArray[np.uint8]) -> Floats:
    """Unit embeddings (B, E) of images (B, height, width, 3), by the whole image tower and nothing else."""
    found: Floats = F.normalize(model.tower.encode(torch.from_numpy(rgb)).float(), dim=-1).double().cpu().numpy()
    return found


def text_embeddings(model: ClipModel, texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit embeddings (T, E) of texts."""
    found: NDArray[np.float32] = TextCache(model)(texts).cpu().numpy()
    return found
