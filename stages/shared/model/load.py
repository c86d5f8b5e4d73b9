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
from stages.shared.model.checkpoints.layouts import OPENAI, arranged, layout_of
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
    *(TypeError, ValueError, AttributeError, LookupError),
    *(ArithmeticError, RuntimeError, AssertionError),
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
    described = describe(config)
    tower = plan_of(described.architecture).kind
    layout = described.layout
    bundled = described.weights is not None and WEIGHTS_ROOT in described.weights.parents
    if not bundled:
        with torch.device("meta"):
            model = _built(described)
        check_supported(model)
        if described.weights is not None:
            state = read_state(described.weights, described.key, numbers=False)
            layout = layout_of(state, described.weights, described.key)
            _fitting(model, arranged(state, layout), described)
    return replace(described, tower=tower, layout=layout, fingerprint=_fingerprint(described))


def _fingerprint(described: ModelDescription) -> str:
    """Identify architecture, input, vocabulary and weights.

    Equal strings mean equal heat maps, with one exception: for a `pretrained` tag the name is hashed and not the file,
    which need not be there yet. open_clip can give a tag other weights in a later version.
    """
    parts: list[Any] = [described.architecture, asdict(described.input)]
    parts += [] if described.siglip is None else [described.siglip]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    vocabulary = vocabulary_of(described)
    if vocabulary is not None:
        digest.update(vocabulary.read_bytes())
    if described.weights is None:
        digest.update(f"{described.name}/{described.pretrained}".encode())
    else:
        for path in weight_files(described.weights, described.key):
            with path.open("rb") as file:
                while piece := file.read(1 << 22):
                    digest.update(piece)
    return f"{described.name}:{digest.hexdigest()[:32]}"


def fetch_files(name: str, tag: str, say: hub.Say) -> None:
    """Download what the model of a tag needs, so that it can be loaded without a network. Raise WeightsError."""
    hub.fetch(name, tag, say)
    tokenizer_of(describe(ModelConfig(name=name, pretrained=tag)))


def load(config: ModelConfig) -> ClipModel:
    """Load a model, in evaluation mode on the configured device.

    Raise as `usable_model`, and ResourceError if the device is not there.
    """
    described = describe(config)
    plan_of(described.architecture)
    device = pick_device(config.device)
    precision = choose_precision(config.precision, device)
    warn_of_slow_precision(precision, device)
    if config.threads is not None and device.type == "cpu":
        torch.set_num_threads(config.threads)
    module = module_of(described).requires_grad_(False)
    tokenizer = tokenizer_of(described)
    options: dict[str, Any] = {"name": described.name, "precision": PRECISIONS[precision]}
    with moving_to_device(described.name):
        clip = from_open_clip(module.to(device), tokenizer, described.input, **options)
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
    stated = getattr(visual, "preprocess_cfg", None) or {}
    mean = tuple(stated.get("mean") or open_clip.OPENAI_DATASET_MEAN) if spec is None else spec.mean
    std = tuple(stated.get("std") or open_clip.OPENAI_DATASET_STD) if spec is None else spec.std
    tower = build_image_tower(private_copy(visual, precision), mean, std)
    stride = tower.placement.stride_px
    if spec is None:
        size = visual.image_size[0] if isinstance(visual.image_size, (tuple, list)) else visual.image_size
        how: Any = stated.get("interpolation") or "bicubic"
        spec = InputSpec(size_px=size // stride * stride, patch_px=stride, mean=mean, std=std, interpolation=how)
    if spec.patch_px != stride or spec.size_px % spec.patch_px:
        raise ConfigError(
            f"{name} has a token every {stride} px, which does not fit images of {spec.size_px} px "
            f"with one every {spec.patch_px} px"
        )
    texts = _own_tokenizer(model) if tokenizer is None else tokenizer
    bias = getattr(model, "logit_bias", None)
    return ClipModel(
        name=name,
        tower=tower,
        input=spec,
        encode_text=TextEncoder(model, texts),
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


def _own_tokenizer(model: Model) -> Any:
    """CLIP's own tokenizer for a model with its vocabulary. Raise ConfigError for a model with another one."""
    tokenizer = ClipTokenizer(context_length=getattr(model, "context_length", None) or 77)
    size = getattr(model, "vocab_size", None)
    if size != tokenizer.vocab_size:
        raise ConfigError(
            f"the model's vocabulary has {size} tokens and not the {tokenizer.vocab_size} of CLIP's own tokenizer: "
            "give its tokenizer too, tokenizer=open_clip.get_tokenizer(NAME)"
        )
    return tokenizer


def module_of(described: ModelDescription) -> Model:
    """Return open_clip's module with its weights, float32, in evaluation mode, even if it cannot be explained.

    Raise ConfigError if open_clip cannot build it, WeightsError for missing, damaged or another model's weights.
    """
    if described.pretrained is not None:
        return _downloaded(described.name, described.pretrained, described.architecture)
    state = {} if described.weights is None else read_state(described.weights, described.key)
    layout = layout_of(state, described.weights, described.key)
    if layout == OPENAI:
        # All of OpenAI's models were trained with QuickGELU (open_clip model.py does the same).
        described = replace(described, architecture={**described.architecture, "quick_gelu": True})
    model = _built(described)
    model.load_state_dict(_fitting(model, arranged(state, layout), described), strict=True)
    _log.info("%s: the weights are %s's", described.name, layout)
    return model.eval()


def _downloaded(name: str, tag: str, architecture: dict[str, Any]) -> Model:
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


def _built(described: ModelDescription) -> Model:
    architecture = described.architecture
    arguments = {key: value for key, value in architecture.items() if key != "custom_text"}
    if described.siglip is not None:
        arguments["vision_cfg"] = _SMALLEST
    elif "timm_model_name" in architecture["vision_cfg"]:
        # It names our own trunk to timm, whose layers only its towers wait for.
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
        if described.siglip is not None:
            model.visual = _siglip_tower(described.siglip, architecture["embed_dim"])
    except OSError as error:
        raise WeightsError(f"open_clip could not get the text tower's configuration: {error}") from error
    except _BUILD_ERRORS as error:  # keys that open_clip does not have, values that make no sense
        raise ConfigError(f"open_clip cannot build the model that model.config describes: {one_line(error)}") from error
    return model


def _siglip_tower(trunk: dict[str, Any], embed_dim: int) -> nn.Module:
    """The image tower of a SigLIP of any size as open_clip holds it, with random weights: a `TimmModel`.

    open_clip builds such towers by timm's names alone, and those have the exact GELU, where SigLIP was trained with its
    approximation by tanh (big_vision, `flax.linen.gelu`), which is what `transformers` computes.
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


def _fitting(model: Model, state: State, described: ModelDescription) -> State:
    """Name the tensors as the model does. Raise WeightsError if they are those of another model."""
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in ("logit_scale", "logit_bias"):  # one number, of whatever shape
        value = state.get(name)
        if isinstance(value, torch.Tensor) and value.numel() == 1 and name in wanted:
            state[name] = value.reshape(wanted[name])
    found = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, torch.Tensor)}
    missing = sorted(wanted.keys() - found.keys())
    unknown = sorted(state.keys() - wanted.keys())
    differing = [name for name in wanted if name in found and wanted[name] != found[name]]
    named = ((missing, "are missing"), (unknown, "are not the model's"))
    faults = [f"{len(names)} tensors {what}, such as {names[0]}" for names, what in named if names]
    if differing:
        name = differing[0]
        faults.append(f"{len(differing)} have other sizes, such as {name}: {wanted[name]} wanted, {found[name]} found")
    if faults:
        raise WeightsError(
            f"{described.weights} does not fit the architecture "
            f"{described.described_by or described.name}: {'; '.join(faults)}",
            key=described.key,
        )
    return state
