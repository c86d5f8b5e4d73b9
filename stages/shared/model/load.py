"""open_clip models: checked before any work, loaded by name and tag or from a checkpoint, or taken from memory."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import open_clip
import torch
from torch import nn

from stages.contract.errors import ConfigError, WeightsError, one_line
from stages.shared.model import hub
from stages.shared.model.catalog import WEIGHTS_ROOT
from stages.shared.model.checkpoints.layouts import OPENAI, convert_to_open_clip, layout_of
from stages.shared.model.checkpoints.state import State, first_line, read_state, weight_files
from stages.shared.model.clip import ClipModel, TextEncoder
from stages.shared.model.config import InputSpec, ModelConfig
from stages.shared.model.device import (
    PRECISIONS,
    choose_precision,
    moving_to_device,
    pick_device,
    warn_of_slow_precision,
)
from stages.shared.model.recognise import ModelDescription, describe
from stages.shared.model.tokenizer import ClipTokenizer, tokenizer_of, vocabulary_of
from stages.shared.model.towers.from_open_clip import Model, build_image_tower, check_supported
from stages.shared.model.towers.plan import SUPPORTED, plan_of
from stages.shared.model.towers.trunk import private_copy

_BUILD_ERRORS: Final = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
)
"""The exceptions of open_clip and torch for a model JSON that makes no sense."""

# The smallest tower that open_clip can build, which that of a SigLIP replaces.
_SMALLEST: Final = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1}

_log = logging.getLogger(__name__)


def usable_model(config: ModelConfig) -> ModelDescription:
    """Check before any work that a model can be loaded and explained, and describe it.

    The model is built without memory and compared with the shapes in its weights file. The bundled models are known to
    fit. The file of a tag need not be there yet.

    Raise ConfigError, with the reason, for a model that is unknown or cannot be explained, and WeightsError for weights
    that are missing, damaged or another model's.
    """
    description = describe(config)
    tower = plan_of(description.architecture).kind
    layout = description.layout
    is_bundled = description.weights is not None and WEIGHTS_ROOT in description.weights.parents
    if not is_bundled:
        with torch.device("meta"):
            model = _build(description)
        check_supported(model)
        if description.weights is not None:
            state = read_state(description.weights, description.key, numbers=False)
            layout = layout_of(state, description.weights, description.key)
            _fit_state(model, convert_to_open_clip(state, layout), description)
    return replace(description, tower=tower, layout=layout, fingerprint=_fingerprint(description))


def _fingerprint(description: ModelDescription) -> str:
    """Identify architecture, input, vocabulary and weights.

    Equal strings mean equal heat maps, with one exception: for a `pretrained` tag the name is hashed and not the file,
    which need not be there yet. open_clip can give a tag other weights in a later version.
    """
    parts: list[Any] = [description.architecture, asdict(description.input)]
    parts += [] if description.siglip is None else [description.siglip]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    vocabulary = vocabulary_of(description)
    if vocabulary is not None:
        digest.update(vocabulary.read_bytes())
    if description.weights is None:
        digest.update(f"{description.name}/{description.pretrained}".encode())
    else:
        for path in weight_files(description.weights, description.key):
            with path.open("rb") as file:
                while piece := file.read(1 << 22):
                    digest.update(piece)
    return f"{description.name}:{digest.hexdigest()[:32]}"


def fetch_files(name: str, tag: str, say: hub.Say) -> None:
    """Download the files of a tag's model, so that it can be loaded without a network. Raise WeightsError."""
    hub.fetch(name, tag, say)
    tokenizer_of(describe(ModelConfig(name=name, pretrained=tag)))


def load(config: ModelConfig) -> ClipModel:
    """Load a model, in evaluation mode on the configured device.

    Raise as `usable_model`, and ResourceError if the device is not there.
    """
    description = describe(config)
    plan_of(description.architecture)
    device = pick_device(config.device)
    precision = choose_precision(config.precision, device)
    warn_of_slow_precision(precision, device)
    if config.threads is not None and device.type == "cpu":
        torch.set_num_threads(config.threads)
    module = module_of(description).requires_grad_(False)
    tokenizer = tokenizer_of(description)
    dtype = PRECISIONS[precision]
    with moving_to_device(description.name):
        clip = from_open_clip(module.to(device), tokenizer, description.input, name=description.name, precision=dtype)
    _log.info("%s computes on %s in %s", clip.name, clip.device_name, precision)
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
        tokenizer: Texts -> int (T, context), as `open_clip.get_tokenizer` gives it. None: CLIP's own, if the model has
            its vocabulary.
        spec: Size and normalisation of the images. None: the model's own, or OpenAI's mean and deviation.
        name: Name for people.
        precision: Precision of the image trunk; None keeps the model's own.
    """
    model = getattr(model, "module", model)  # of DistributedDataParallel
    visual = getattr(model, "visual", None)
    if visual is None:
        raise ConfigError(f"a {type(model).__name__} is not an open_clip model. {SUPPORTED}")
    if model.logit_scale.device.type == "mps":
        raise ConfigError(f"{name} is on an Apple GPU, where float64 is missing: move it to the CPU")
    preprocess = getattr(visual, "preprocess_cfg", None) or {}
    mean = tuple(preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN) if spec is None else spec.mean
    std = tuple(preprocess.get("std") or open_clip.OPENAI_DATASET_STD) if spec is None else spec.std
    tower = build_image_tower(private_copy(visual, precision), mean, std)
    stride = tower.placement.stride_px
    if spec is None:
        size = visual.image_size[0] if isinstance(visual.image_size, (tuple, list)) else visual.image_size
        interpolation: Any = preprocess.get("interpolation") or "bicubic"
        spec = InputSpec(
            size_px=size // stride * stride, patch_px=stride, mean=mean, std=std, interpolation=interpolation
        )
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
        encode_text=TextEncoder(model, _clip_tokenizer(model) if tokenizer is None else tokenizer),
        embed_dim=_embed_dim(model),
        logit_scale=float(model.logit_scale.detach().double().exp()),
        logit_bias=None if bias is None else float(bias.detach()),
    )


def _embed_dim(model: Model) -> int:
    # timm's image towers do not have it, but the text tower beside them does.
    sides: tuple[Any, ...] = (model.visual, getattr(model, "text", None))
    for side in sides:
        if hasattr(side, "output_dim"):
            return int(side.output_dim)
    projection = model.text_projection
    return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])


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


def module_of(description: ModelDescription) -> Model:
    """Return open_clip's module with its weights, float32, in evaluation mode, even if it cannot be explained.

    Raise ConfigError if open_clip cannot build it, WeightsError for missing, damaged or another model's weights.
    """
    if description.pretrained is not None:
        return _download(description.name, description.pretrained, description.architecture)
    state = {} if description.weights is None else read_state(description.weights, description.key)
    layout = layout_of(state, description.weights, description.key)
    if layout == OPENAI:
        # All of OpenAI's models were trained with QuickGELU (open_clip model.py does the same).
        description = replace(description, architecture={**description.architecture, "quick_gelu": True})
    model = _build(description)
    model.load_state_dict(_fit_state(model, convert_to_open_clip(state, layout), description), strict=True)
    _log.info("%s: the weights are %s's", description.name, layout)
    return model.eval()


def _download(name: str, tag: str, architecture: dict[str, Any]) -> Model:
    path = hub.fetch(name, tag)
    quick = bool(architecture.get("quick_gelu"))
    try:
        model = open_clip.create_model(name, pretrained=str(path), precision="fp32", force_quick_gelu=quick)
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise WeightsError(
            f"{path}, which was downloaded for {name}/{tag}, cannot be loaded "
            f"({type(error).__name__}: {first_line(error)}): {hub.damage_of(path)}"
        ) from error
    check_supported(model)
    return model.eval()


def _build(description: ModelDescription) -> Model:
    architecture = description.architecture
    arguments = {key: value for key, value in architecture.items() if key != "custom_text"}
    if description.siglip is not None:
        arguments["vision_cfg"] = _SMALLEST
    elif "timm_model_name" in architecture["vision_cfg"]:
        # This import registers our trunk with timm. It takes time, and only timm's towers need it.
        import stages.shared.model.towers.photo_trunk  # noqa: F401, PLC0415

        # The weights come from our checkpoint: timm would first download those of its own.
        arguments["vision_cfg"] = {**architecture["vision_cfg"], "timm_model_pretrained": False}
    hugging_face = "hf_model_name" in architecture["text_cfg"]
    if hugging_face:
        if find_spec("transformers") is None:
            raise ConfigError("the model's text tower comes from Hugging Face: pip install transformers")
        # The weights come from our checkpoint: open_clip would first download those of the text tower alone.
        arguments["text_cfg"] = {**architecture["text_cfg"], "hf_model_pretrained": False}
    custom = architecture.get("custom_text") or hugging_face
    try:
        model: Model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**arguments)
        if description.siglip is not None:
            model.visual = _siglip_tower(description.siglip, architecture["embed_dim"])
    except OSError as error:
        raise WeightsError(f"open_clip could not get the text tower's configuration: {error}") from error
    except _BUILD_ERRORS as error:  # keys that open_clip does not have, values that make no sense
        raise ConfigError(f"open_clip cannot build the model that model.config describes: {one_line(error)}") from error
    return model


def _siglip_tower(trunk: dict[str, Any], embed_dim: int) -> nn.Module:
    """Build the image tower of a SigLIP of any size as open_clip has it, a `TimmModel`, with random weights.

    open_clip builds such towers by timm's names alone, and those have the exact GELU. SigLIP was trained with its
    approximation by tanh (big_vision, `flax.linen.gelu`), which `transformers` computes, too.
    """
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415 - for this tower alone

    options = {key: value for key, value in trunk.items() if key != "norm_eps"}
    with torch.device("meta"):  # the layers of one of timm's SigLIP towers, which are never allocated
        tower: nn.Module = open_clip.timm_model.TimmModel(
            "vit_base_patch16_siglip_224", embed_dim, image_size=options["img_size"], pool="map", proj="none"
        )
    norm = partial(nn.LayerNorm, eps=trunk["norm_eps"])
    tower.trunk = VisionTransformer(**options, num_classes=0, global_pool="map", class_token=False, norm_layer=norm)
    return tower


def _fit_state(model: Model, state: State, description: ModelDescription) -> State:
    """Name the tensors as the model does. Raise WeightsError if they are those of another model."""
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in ("logit_scale", "logit_bias"):  # one number, of whatever shape
        value = state.get(name)
        if isinstance(value, torch.Tensor) and value.numel() == 1 and name in expected:
            state[name] = value.reshape(expected[name])
    actual = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, torch.Tensor)}
    missing = sorted(expected.keys() - actual.keys())
    unknown = sorted(state.keys() - expected.keys())
    differing = [name for name in expected if name in actual and expected[name] != actual[name]]
    kinds = ((missing, "are missing"), (unknown, "are not the model's"))
    faults = [f"{len(names)} tensors {fault}, such as {names[0]}" for names, fault in kinds if names]
    if differing:
        name = differing[0]
        sizes = f"{expected[name]} wanted, {actual[name]} found"
        faults.append(f"{len(differing)} have other sizes, such as {name}: {sizes}")
    if faults:
        raise WeightsError(
            f"{description.weights} does not fit the architecture "
            f"{description.described_by or description.name}: {'; '.join(faults)}",
            key=description.key,
        )
    return state
