"""Models as explainers use them: loaded by their description, or taken from memory."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.model import hub
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import (
    AUTO,
    InputSpec,
    ModelConfig,
    ModelDescription,
    PrecisionChoice,
)
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.device import (
    DTYPES,
    choose_precision,
    moving_to_device,
    pick_device,
    warn_of_slow_precision,
)
from phrasebox.stages.model.module import module_of
from phrasebox.stages.model.text_encoder import TextEncoder
from phrasebox.stages.model.tokenizer import ClipTokenizer, tokenizer_of
from phrasebox.stages.model.towers.folding import folded_copy
from phrasebox.stages.model.towers.from_open_clip import Model, build_image_tower
from phrasebox.stages.model.towers.plan import SUPPORTED, input_of, sides_px
from phrasebox.stages.model.towers.trunk import private_copy

_log = logging.getLogger(__name__)


def fetch(description: ModelDescription, say: hub.Say) -> None:
    """Download the files of a tag, so that its model can be loaded without a network. Raise WeightsError."""
    if description.pretrained is not None:
        hub.fetch(description.name, description.pretrained, say)
        tokenizer_of(description)


def load(
    description: ModelDescription,
    *,
    device: str = "auto",
    precision: PrecisionChoice = AUTO,
    threads: int | None = None,
) -> ClipModel:
    """Load a model, in evaluation mode; the options are those of `ModelConfig`.

    Raise WeightsError if its files are missing or damaged, and ResourceError if the device is
    not there.
    """
    place = pick_device(device)
    chosen_precision = choose_precision(precision, place)
    warn_of_slow_precision(chosen_precision, place)
    if threads is not None and place.type == "cpu":
        torch.set_num_threads(threads)
    if description.is_bundled:  # a worker on another machine may have the files elsewhere
        description = describe(ModelConfig(name=description.name))
    module = module_of(description).requires_grad_(False)
    with moving_to_device(description.name):
        clip = from_open_clip(
            module.to(place),
            tokenizer_of(description),
            description.input,
            name=description.name,
            precision=DTYPES[chosen_precision],
        )
    _log.info("%s computes on %s in %s", clip.name, clip.device_name, chosen_precision)
    return clip


def from_open_clip(
    model: Model,
    tokenizer: Any = None,
    spec: InputSpec | None = None,
    *,
    name: str = "open_clip",
    precision: torch.dtype | None = None,
) -> ClipModel:
    """Wrap a model that is already loaded. It is only read: its mode, hooks, flags and outputs stay as they are.

    Raise ConfigError if the image tower cannot be explained, or the tokenizer has to be given.

    Args:
        model: An open_clip CLIP or CustomTextCLIP on any device and in any precision.
        tokenizer: Texts -> int (T, context), as `open_clip.get_tokenizer` gives it. None:
            CLIP's own, if the model has its vocabulary.
        spec: Size and normalisation of the images. None: the model's own, or OpenAI's mean and
            deviation.
        name: Name for people.
        precision: Precision of the image trunk, and of texts (`TextEncoder`); None keeps the
            model's own, and shares its weights. Otherwise batch norms are folded into convolutions.
    """
    model = getattr(model, "module", model)  # of DistributedDataParallel
    visual = getattr(model, "visual", None)
    if visual is None:
        raise ConfigError(f"a {type(model).__name__} is not an open_clip model. {SUPPORTED}")
    if model.logit_scale.device.type == "mps":
        raise ConfigError(f"{name} is on an Apple GPU, where float64 is missing: move it to the CPU")
    model_spec = input_of(
        getattr(visual, "preprocess_cfg", None) or {}, *sides_px({"image_size": visual.image_size})
    )
    normalisation = spec or model_spec
    visual_copy = private_copy(visual, None) if precision is None else folded_copy(visual, precision)
    tower = build_image_tower(visual_copy, normalisation.mean, normalisation.std)
    stride = tower.placement.stride_px
    if spec is None:
        spec = replace(model_spec, size_px=model_spec.size_px // stride * stride, patch_px=stride)
    if spec.patch_px != stride or spec.size_px % spec.patch_px:
        raise ConfigError(
            f"{name} has a token every {stride} px, which does not fit images of {spec.size_px} px "
            f"with one every {spec.patch_px} px"
        )
    bias = getattr(model, "logit_bias", None)
    return ClipModel(
        name=name,
        tower=tower,
        input=spec,
        encode_text=TextEncoder(
            model, _clip_tokenizer(model) if tokenizer is None else tokenizer, precision
        ),
        logit_scale=float(model.logit_scale.detach().double().exp()),
        logit_bias=None if bias is None else float(bias.detach()),
    )


def _clip_tokenizer(model: Model) -> Any:
    """Return CLIP's own tokenizer for a model with its vocabulary. Raise ConfigError for another vocabulary."""
    tokenizer = ClipTokenizer(context_length=getattr(model, "context_length", None) or 77)
    size = getattr(model, "vocab_size", None)
    if size != tokenizer.vocab_size:
        raise ConfigError(
            f"the model's vocabulary has {size} tokens and not the {tokenizer.vocab_size} of CLIP's own tokenizer: "
            "give its tokenizer too, tokenizer=open_clip.get_tokenizer(NAME)"
        )
    return tokenizer
