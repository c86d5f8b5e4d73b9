"""open_clip models, loaded by name and tag, from a checkpoint, or taken from memory."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor, nn

from stages.contract.errors import ConfigError, WeightsError, one_line
from stages.shared.model import hub
from stages.shared.model.catalog import WEIGHTS_ROOT
from stages.shared.model.checkpoints.layouts import OPEN_CLIP, OPENAI, arranged, recognise
from stages.shared.model.checkpoints.state import first_line, read_state
from stages.shared.model.clip import ClipModel, TextSide
from stages.shared.model.config import InputSpec, ModelConfig
from stages.shared.model.deferred import open_clip
from stages.shared.model.describe import Description, describe, input_spec, siglip_vocabulary, tokenizer_of
from stages.shared.model.device import PRECISIONS, pick_device, warn_of_slow_precision
from stages.shared.model.texts import TextEncoder
from stages.shared.model.towers import siglip
from stages.shared.model.towers.plan import SUPPORTED, plan_of
from stages.shared.model.towers.take_apart import Model, check_supported, take_apart
from stages.shared.model.towers.take_apart_text import check_tokenizer, take_text_apart
from stages.shared.model.towers.trunk import private_copy
from stages.shared.model.towers.vision import VisionTower, pack_tower

_BUILD_ERRORS: Final = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
)
"""What open_clip and torch raise on a model JSON that makes no sense."""

_log = logging.getLogger(__name__)


def load(config: ModelConfig, *, pack: bool = False, plain_blocks: int | None = None) -> ClipModel:
    """Load a model, in evaluation mode on the configured device.

    Args:
        config: which model, where, and in which precision.
        pack: see `pack_tower`; for bulk work on a CPU.
        plain_blocks: see `pack_tower`.

    Raises:
        ConfigError: the model is unknown or cannot be explained.
        WeightsError: the weights are missing, damaged or another model's.
        ResourceError: the device is not there.
    """
    description = describe(config)
    plan_of(description.architecture)
    device = pick_device(config.device)
    warn_of_slow_precision(config.precision, device)
    if config.threads is not None and device.type == "cpu":
        torch.set_num_threads(config.threads)
    clip = from_open_clip(
        module_of(description).requires_grad_(False).to(device),
        tokenizer_of(description),
        description.input,
        name=description.name,
        precision=PRECISIONS[config.precision],
        pack=pack,
        plain_blocks=plain_blocks,
    )
    _log.info("%s computes on %s in %s", clip.name, clip.device_name, config.precision)
    return clip


def module_of(description: Description) -> Model:
    """open_clip's module with its weights, float32, in evaluation mode.

    Raises:
        ConfigError: open_clip cannot build it.
        WeightsError: the weights are missing, damaged or another model's.
    """
    model: Model = _download(description) if description.pretrained is not None else build_with_weights(description)
    return model.eval()


def from_open_clip(
    model: Model,
    tokenizer: Any = None,
    spec: InputSpec | None = None,
    *,
    name: str = "open_clip",
    precision: torch.dtype | None = None,
    pack: bool = False,
    plain_blocks: int | None = None,
) -> ClipModel:
    """Wrap a model that is already loaded. It is only read: its mode, hooks, flags and outputs stay as they are.

    Args:
        model: an open_clip CLIP or CustomTextCLIP on any device and in any precision.
        tokenizer: texts -> int (T, context), as `open_clip.get_tokenizer` gives it. None: CLIP's own, if the model has
            its vocabulary.
        spec: size and normalisation of the images. None: what the model says, and OpenAI's mean and deviation where it
            says nothing.
        name: for people.
        precision: of the image trunk; None keeps the model's own.
        pack: see `pack_tower`.
        plain_blocks: see `pack_tower`.

    Raises:
        ConfigError: the image tower cannot be explained, or the tokenizer has to be given.
    """
    visual = getattr(model, "visual", None)
    if visual is None:
        raise ConfigError(f"a {type(model).__name__} is not an open_clip model. {SUPPORTED}")
    own = private_copy(visual, None)
    if spec is None:
        sides = {"image_size": visual.image_size, "patch_size": 1}
        spec = input_spec({"vision_cfg": sides, "text_cfg": {}}, getattr(visual, "preprocess_cfg", {}))
        tower = take_apart(own, spec.mean, spec.std, precision)
        stride = tower.placement.stride_px
        spec = replace(spec, size_px=spec.size_px // stride * stride, patch_px=stride)
    else:
        tower = take_apart(own, spec.mean, spec.std, precision)
    if spec.patch_px != tower.placement.stride_px or spec.size_px % spec.patch_px:
        raise ConfigError(
            f"{name} has a token every {tower.placement.stride_px} px, which does not fit images of {spec.size_px} px "
            f"with one every {spec.patch_px} px"
        )
    texts = _own_tokenizer(model) if tokenizer is None else tokenizer

    encoder = TextEncoder(model, texts)

    def text_side() -> TextSide:
        check_tokenizer(texts)
        return TextSide(tower=encoder.taken_apart(), tokenizer=texts)

    return ClipModel(
        name=name,
        tower=pack_tower(tower, plain_blocks) if pack and isinstance(tower, VisionTower) else tower,
        input=spec,
        encode_text=encoder,
        embed_dim=_embed_dim(model),
        text_side=text_side,
    )


def _embed_dim(model: Model) -> int:
    """E. timm's image towers do not say it, but the text tower beside them does."""
    sides: tuple[Any, ...] = (model.visual, getattr(model, "text", None))
    for side in sides:
        if hasattr(side, "output_dim"):
            return int(side.output_dim)
    projection = model.text_projection
    return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])


def _own_tokenizer(model: Model) -> Any:
    """CLIP's own tokenizer for a model with its vocabulary. Raises ConfigError for a model with another one."""
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=getattr(model, "context_length", None) or 77)
    size = getattr(model, "vocab_size", None)
    if size != tokenizer.vocab_size:
        raise ConfigError(
            f"the model's vocabulary has {size} tokens and not the {tokenizer.vocab_size} of CLIP's own tokenizer: "
            "give its tokenizer too, tokenizer=open_clip.get_tokenizer(NAME)"
        )
    return tokenizer


def build_with_weights(description: Description) -> Model:
    """Build the model of a checkpoint with its weights, whether or not its image tower can be explained.

    Raises:
        ConfigError: open_clip cannot build it.
        WeightsError: the weights are missing, damaged or another model's.
    """
    state = {} if description.weights is None else read_state(description.weights, description.key)
    layout = recognise(state, description.weights, description.key)
    architecture = dict(description.architecture)
    if layout == OPENAI:
        # All of OpenAI's models were trained with QuickGELU (open_clip model.py does the same).
        architecture["quick_gelu"] = True
    model = _build(architecture)
    model.load_state_dict(_fitting(model, arranged(state, layout), description), strict=True)
    _log.info("%s: the weights are %s's", description.name, layout)
    return model.eval()


def refuse_unsupported(description: Description) -> None:
    """Build the model without memory and check it, so that what cannot be explained is refused before any work.

    The catalog's models are known to be supported. Without memory a build takes a second of importing torch's compiler.

    Raises:
        ConfigError: the image tower cannot be explained.
    """
    plan_of(description.architecture)
    if not _is_of_catalog(description):
        check_supported(_without_memory(description))


def refuse_without_importance(description: Description) -> None:
    """Build the model without memory, so that a text tower without word importance is refused before any work.

    Raises:
        ConfigError: the importance of words is not defined on its text tower, and why.
    """
    take_text_apart(_without_memory(description))
    named = description.architecture["text_cfg"].get("hf_tokenizer_name")
    if named or description.tokenizer is not None:
        raise ConfigError(
            f"{named or description.tokenizer} does not say which characters its tokens stand for; "
            "explain.importance=eos needs CLIP's own kind of tokenizer"
        )


def refuse_misfit(description: Description) -> str:
    """Read a weights file and compare it with the model before any worker does; the catalog's files are known to fit.

    Returns:
        Whose checkpoint it is, see `layouts`; "" for a tag, whose file need not be there yet.

    Raises:
        WeightsError: the file is damaged or belongs to another model.
    """
    if description.weights is None:
        return ""
    if _is_of_catalog(description):
        return OPEN_CLIP
    state = read_state(description.weights, description.key)
    layout = recognise(state, description.weights, description.key)
    _fitting(_without_memory(description), arranged(state, layout), description)
    return layout


def _is_of_catalog(description: Description) -> bool:
    return description.weights is not None and WEIGHTS_ROOT in description.weights.parents


def _without_memory(description: Description) -> Model:
    with torch.device("meta"):
        return _build(description.architecture)


def _build(architecture: dict[str, Any]) -> Model:
    """Build an open_clip model with random weights.

    Args:
        architecture: open_clip's `model_cfg`. Where it holds `siglip_trunk`, see `siglip`, that is the image tower.
    """
    arguments = {key: value for key, value in architecture.items() if key not in ("custom_text", "siglip_trunk")}
    trunk = architecture.get("siglip_trunk")
    if trunk is not None:
        arguments["vision_cfg"] = siglip.PLACEHOLDER
    elif "timm_model_name" in architecture["vision_cfg"]:
        import stages.shared.model.towers.photo_trunk  # noqa: F401, PLC0415 - it names our own trunk to timm

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
        if trunk is not None:
            model.visual = siglip.image_tower(trunk, architecture["embed_dim"])
    except OSError as error:
        raise WeightsError(f"open_clip could not get the text tower's configuration: {error}") from error
    except _BUILD_ERRORS as error:  # keys that open_clip does not have, values that make no sense
        raise ConfigError(f"open_clip cannot build the model that model.config describes: {one_line(error)}") from error
    return model


def fetch_files(description: Description, say: hub.Say) -> None:
    """Download what the model of a tag needs, so that it can be loaded without a network.

    Raises:
        WeightsError: it cannot be had.
    """
    if description.pretrained is not None:
        hub.fetch(description.name, description.pretrained, say)
        repository = siglip_vocabulary(description.architecture)
        if repository is not None:
            hub.fetch_tokenizer(repository, say)


def _download(description: Description) -> Model:
    """The model of a tag, from the cache or the hub. open_clip reads the file, which may be in an older layout."""
    path = hub.fetch(description.name, str(description.pretrained))
    try:
        model: Model = open_clip.create_model(
            description.name,
            pretrained=str(path),
            precision="fp32",
            force_quick_gelu=bool(description.architecture.get("quick_gelu")),
        )
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise WeightsError(
            f"{path}, which was downloaded for {description.name}/{description.pretrained}, cannot be loaded "
            f"({type(error).__name__}: {first_line(error)}): {hub.damage_of(path)}"
        ) from error
    check_supported(model)
    return model


def _fitting(model: Model, state: dict[str, Tensor], description: Description) -> dict[str, Tensor]:
    """Name the tensors as the model does. Raises WeightsError if they are those of another model."""
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in ("logit_scale", "logit_bias"):  # one number, of whatever shape
        value = state.get(name)
        if isinstance(value, Tensor) and value.numel() == 1 and name in wanted:
            state[name] = value.reshape(wanted[name])
    found = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(state.keys() - wanted.keys())
    differing = [name for name in wanted if name in found and wanted[name] != found[name]]
    faults = [
        f"{len(names)} tensors {what}, such as {names[0]}"
        for names, what in ((missing, "are missing"), (unknown, "are not the model's"))
        if names
    ]
    if differing:
        name = differing[0]
        faults.append(f"{len(differing)} have other sizes, such as {name}: {wanted[name]} wanted, {found[name]} found")
    if faults:
        raise WeightsError(
            f"{description.key}: {description.weights} does not fit the architecture "
            f"{description.described_by or description.name}: {'; '.join(faults)}"
        )
    return state
