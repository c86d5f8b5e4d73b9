"""open_clip models: by name and tag, by checkpoint, or by model JSON."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from stages.contract.errors import ConfigError, WeightsError, one_line
from stages.model.base import ClipModel
from stages.model.checkpoint import read_state
from stages.model.config import InputSpec, ModelConfig
from stages.model.device import PRECISIONS, pick_device, warn_of_slow_precision
from stages.model.take_apart import SUPPORTED, check_supported, take_apart
from stages.model.text import TextEncoder
from stages.model.weights.resolve import resolve

_log = logging.getLogger(__name__)

Model = Any
"""An open_clip model or a part of one: open_clip is untyped."""

_OPENAI_ONLY = ("input_resolution", "context_length", "vocab_size")
"""Tensors that only OpenAI's own files have."""

_BUILD_ERRORS = (
    TypeError,
    ValueError,
    AttributeError,
    KeyError,
    IndexError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
)
"""What open_clip and torch raise on a model JSON that makes no sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What can be known of a model before its weights are read.

    architecture  open_clip's model configuration
    folder        where relative tokenizer paths start; None for open_clip's own models
    weights       the checkpoint file; None if open_clip downloads it
    calibrations  of scores, where the model brings some
    """

    name: str
    architecture: dict[str, Any]
    input: InputSpec
    folder: Path | None
    weights: Path | None
    pretrained: str | None
    calibrations: tuple[Path, ...] = ()


def describe(config: ModelConfig) -> Description:
    """Look up architecture, input and weights file; nothing heavy is read.

    Raises ConfigError for an unknown name and WeightsError for files that are missing or damaged.
    """
    if config.config is not None:
        return _describe_file(config.config.expanduser(), config.weights)
    name = config.name or "demo"
    if name == "demo":
        files = resolve("demo")
        description = _describe_file(files.config, files.weights, name="demo")
        return replace(description, calibrations=files.calibrations)
    architecture = open_clip.get_model_config(name)
    if architecture is None:
        raise ConfigError(f"model.name: open_clip has no model {name!r}{_nearest(name)}")
    preprocess: dict[str, Any] = {}
    if config.pretrained is not None:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if config.pretrained not in tags:
            raise ConfigError(
                f"model.pretrained: open_clip has no tag {config.pretrained!r} for {name}; it has {', '.join(tags)}"
            )
        preprocess = open_clip.get_pretrained_cfg(name, config.pretrained)
        if preprocess.get("quick_gelu"):
            architecture["quick_gelu"] = True
    return Description(
        name=name,
        architecture=architecture,
        input=_input_spec(architecture, preprocess),
        folder=None,
        weights=_existing(config.weights),
        pretrained=config.pretrained,
    )


def _describe_file(path: Path, weights: Path | None, *, name: str | None = None) -> Description:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"model.config: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"model.config: {path} is not JSON: {error}") from error
    architecture = parsed.get("model_cfg", parsed) if isinstance(parsed, dict) else {}
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= architecture.keys():
        raise ConfigError(f"model.config: {path} lacks embed_dim, vision_cfg or text_cfg")
    return Description(
        name=name or path.stem,
        architecture=architecture,
        input=_input_spec(architecture, parsed.get("preprocess_cfg", {})),
        folder=path.parent,
        weights=_existing(weights),
        pretrained=None,
    )


def _existing(weights: Path | None) -> Path | None:
    if weights is None:
        return None
    path = weights.expanduser()
    if not path.is_file():
        raise WeightsError(f"model.weights: no file {path}")
    return path


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, open_clip.list_models(), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else "; see open_clip.list_models()"


def _input_spec(architecture: dict[str, Any], preprocess: dict[str, Any]) -> InputSpec:
    sides = architecture["vision_cfg"]
    if (
        not isinstance(sides, dict)
        or not isinstance(architecture["text_cfg"], dict)
        or not isinstance(preprocess, dict)
    ):
        raise ConfigError("model.config: vision_cfg, text_cfg and preprocess_cfg must hold keys")
    size, patch = sides.get("image_size", 224), sides.get("patch_size", 16)
    if isinstance(size, (list, tuple)):
        if len(set(size)) != 1:
            raise ConfigError(f"the model's input is {size[1]}x{size[0]}; only square inputs are supported")
        size = size[0]
    if isinstance(patch, (list, tuple)):
        if len(set(patch)) != 1:
            raise ConfigError("only square patches are supported")
        patch = patch[0]
    if not (isinstance(size, int) and size > 0 and isinstance(patch or 1, int)):
        raise ConfigError(
            f"model.config: image_size and patch_size must be whole numbers above 0, got {size} and {patch}"
        )
    return InputSpec(
        size_px=size,
        patch_px=patch or 1,
        mean=tuple(preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(preprocess.get("std") or open_clip.OPENAI_DATASET_STD),
        interpolation=preprocess.get("interpolation") or "bicubic",
    )


def fingerprint(description: Description) -> str:
    """Identify architecture, input, vocabulary and weights.

    Equal strings mean equal heat maps, with one exception: of a `pretrained` tag the name is hashed and not the file,
    which need not be there yet. open_clip can give a tag other weights in a later version.
    """
    parts = [description.architecture, asdict(description.input)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    vocabulary = _vocabulary(description)
    if vocabulary is not None:
        digest.update(vocabulary.read_bytes())
    if description.weights is not None:
        with description.weights.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    else:
        digest.update(f"{description.name}/{description.pretrained}".encode())
    return f"{description.name}:{digest.hexdigest()[:32]}"


def load(config: ModelConfig, *, pack: bool = False) -> ClipModel:
    """The model, in evaluation mode on the configured device.

    pack   see `VisionTower.pack`: for bulk work on a CPU

    Raises ConfigError for what is unknown or unsupported, WeightsError for weights that cannot be
    had or do not fit, ResourceError for a device that is not there.
    """
    description = describe(config)
    device = pick_device(config.device)
    warn_of_slow_precision(config.precision, device)
    if config.threads is not None and device.type == "cpu":
        torch.set_num_threads(config.threads)
    if description.pretrained is not None:
        model = _download(description)
    else:
        state = read_state(description.weights) if description.weights else {}
        architecture = dict(description.architecture)
        if any(key in state for key in _OPENAI_ONLY):
            # All of OpenAI's models were trained with QuickGELU (open_clip model.py does the same).
            architecture["quick_gelu"] = True
        model = _build(architecture)
        check_supported(model)
        _load_state(model, state, description)
    model = model.eval().requires_grad_(False).to(device)
    tokenizer = _tokenizer(description)
    clip = from_open_clip(
        model,
        tokenizer,
        description.input,
        name=description.name,
        precision=PRECISIONS[config.precision],
        pack=pack,
    )
    _log.info("%s computes on %s in %s", clip.name, clip.device_name, config.precision)
    return clip


def _build(architecture: dict[str, Any]) -> Model:
    """An open_clip model with random weights."""
    arguments = {key: value for key, value in architecture.items() if key != "custom_text"}
    hugging_face = "hf_model_name" in architecture.get("text_cfg", {})
    if "multimodal_cfg" in architecture:
        raise ConfigError(f"CoCa models cannot be explained. {SUPPORTED}")
    if hugging_face and find_spec("transformers") is None:
        raise ConfigError("the model's text tower comes from Hugging Face: pip install transformers")
    custom = architecture.get("custom_text") or hugging_face
    try:
        model: Model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**arguments)
    except OSError as error:
        raise WeightsError(f"open_clip could not get the text tower's configuration: {error}") from error
    except _BUILD_ERRORS as error:  # keys that open_clip does not have, values that make no sense
        raise ConfigError(f"open_clip cannot build the model that model.config describes: {one_line(error)}") from error
    return model


def refuse_unsupported(description: Description) -> None:
    """Build the model without memory and check it: what cannot be explained is refused before any work.

    Raises ConfigError.
    """
    if "timm_model_name" in description.architecture["vision_cfg"]:
        raise ConfigError(f"{description.name} has a timm image tower. {SUPPORTED}")
    check_supported(_without_memory(description))


def refuse_misfit(description: Description) -> None:
    """Read a weights file and compare it with the model, before any worker does; not the demo's, whose sum is known.

    Raises WeightsError for a file that is damaged or belongs to another model.
    """
    if description.weights is not None and description.name != "demo":
        _fitting(_without_memory(description), read_state(description.weights), description)


def _without_memory(description: Description) -> Model:
    with torch.device("meta"):
        return _build(description.architecture)


def _download(description: Description) -> Model:
    try:
        model: Model = open_clip.create_model(
            description.name,
            pretrained=description.pretrained,
            precision="fp32",
            force_quick_gelu=bool(description.architecture.get("quick_gelu")),
        )
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"open_clip could not get {description.name}/{description.pretrained}: {error}. Download the checkpoint "
            f"where there is a network and use `model: {{name: {description.name}, weights: FILE}}`"
        ) from error
    check_supported(model)
    return model


def _load_state(model: Model, state: dict[str, Tensor], description: Description) -> None:
    model.load_state_dict(_fitting(model, state, description), strict=True)


def _fitting(model: Model, state: dict[str, Tensor], description: Description) -> dict[str, Tensor]:
    """The tensors as the model names them. Raises WeightsError if they are those of another model."""
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    state = {name: value for name, value in state.items() if name not in _OPENAI_ONLY}
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    scale = state.get("logit_scale")
    if isinstance(scale, Tensor) and scale.numel() == 1 and "logit_scale" in wanted:
        state["logit_scale"] = scale.reshape(wanted["logit_scale"])
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
            f"model.weights: {description.weights} does not fit the architecture {description.name}: "
            + "; ".join(faults)
        )
    return state


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer, texts -> int64 (texts, context), without its weights, which need not be there.

    Raises ConfigError for an unknown name, WeightsError for a missing vocabulary.
    """
    return _tokenizer(describe(config.model_copy(update={"weights": None})))


def _tokenizer(description: Description) -> Any:
    if description.folder is None:
        return open_clip.get_tokenizer(description.name)
    text = description.architecture["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    vocabulary = _vocabulary(description)
    if vocabulary is not None:
        options["bpe_path"] = str(vocabulary)
    length = text.get("context_length", 77)
    if text.get("hf_tokenizer_name"):
        return open_clip.tokenizer.HFTokenizer(text["hf_tokenizer_name"], context_length=length, **options)
    return open_clip.tokenizer.SimpleTokenizer(context_length=length, **options)


def _vocabulary(description: Description) -> Path | None:
    """File with the tokenizer's merges, if the model brings its own. Raises WeightsError if it is missing."""
    options = description.architecture["text_cfg"].get("tokenizer_kwargs") or {}
    if description.folder is None or "bpe_path" not in options:
        return None
    path = description.folder / str(options["bpe_path"])
    if not path.is_file():
        raise WeightsError(f"model.config: no vocabulary file {path}")
    return path


def from_open_clip(
    model: Model,
    tokenizer: Any = None,
    input_spec: InputSpec | None = None,
    *,
    name: str = "open_clip",
    precision: torch.dtype | None = None,
    pack: bool = False,
) -> ClipModel:
    """Wrap a model that is already loaded. It is only read: its mode, hooks, flags and outputs stay as they are.

    Args:
        model: An open_clip CLIP or CustomTextCLIP on any device.
        tokenizer: Texts -> int (T, context), as `open_clip.get_tokenizer` gives it. None: CLIP's own, if the model has
            its vocabulary.
        input_spec: Size and normalisation of the images. None: what the model says, and OpenAI's mean and deviation
            where it says nothing.
        name: For people.
        precision: Of the image trunk; None keeps the model's own.
        pack: See `VisionTower.pack`.

    Raises:
        ConfigError: The image tower cannot be explained, or the tokenizer has to be given.
    """
    check_supported(model)
    if input_spec is None:
        sides = {"image_size": model.visual.image_size, "patch_size": model.visual.patch_size}
        preprocess = getattr(model.visual, "preprocess_cfg", {})
        input_spec = _input_spec({"vision_cfg": sides, "text_cfg": {}}, preprocess)
    if tokenizer is None:
        tokenizer = _tokenizer_of(model)
    tower = take_apart(model.visual, input_spec, precision)
    return ClipModel(
        name=name,
        tower=tower.pack() if pack else tower,
        input=input_spec,
        encode_text=TextEncoder(model, tokenizer),
        embed_dim=int(model.visual.output_dim),
    )


def _tokenizer_of(model: Model) -> Any:
    """CLIP's own tokenizer for a model with its vocabulary. Raises ConfigError for a model with another one."""
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=getattr(model, "context_length", None) or 77)
    size = getattr(model, "vocab_size", None)
    if size != tokenizer.vocab_size:
        raise ConfigError(
            f"the model's vocabulary has {size} tokens and not the {tokenizer.vocab_size} of CLIP's own tokenizer: "
            "give its tokenizer too, tokenizer=open_clip.get_tokenizer(NAME)"
        )
    return tokenizer


logging.getLogger("open_clip").setLevel(logging.WARNING)
