"""One answer to "which model is this?": architecture, input, tokenizer and weights of any model that can be named.

`describe` reads no weights, except for the shapes of a checkpoint's tensors. `ModelConfig` lists the ways to name a
model. These files beside the weights of a checkpoint describe it, all of them data and no code:

    file                          written by                          describes
    open_clip_config.json         open_clip's push_to_hf_hub          architecture, images, tokenizer
    params.txt                    open_clip's trainer                 name of the architecture, activation, images
    config.json                   transformers' save_pretrained       architecture
    preprocessor_config.json,     transformers' save_pretrained       images
        processor_config.json
    tokenizer.json, ...           transformers' save_pretrained       tokenizer of a SigLIP, see `tokenizer`

Without any of these OpenAI's own tensors alone identify it; `_DESCRIBED_BY` has a row for each of these cases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import open_clip

from stages.contract.errors import ConfigError, WeightsError
from stages.shared.model import tokenizer
from stages.shared.model.catalog import CATALOG, resolve
from stages.shared.model.checkpoints import settings
from stages.shared.model.checkpoints.layouts import CLIP, OPEN_CLIP, OPENAI, SIGLIP, convert_to_open_clip, layout_of
from stages.shared.model.checkpoints.state import INDEX_SUFFIX, State, read_json, read_state
from stages.shared.model.config import InputSpec, ModelConfig, TowerKind, check_model_files
from stages.shared.model.towers.plan import sides_px

OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
TUNED_MODEL: Final = "model"  # the folder, inside that of a fine-tuning, that holds the tuned model

_KEY: Final = "model.checkpoint"  # of the configuration, for messages
_MODEL_TYPES: Final = {"clip": CLIP, "siglip": SIGLIP}  # `model_type` of a `config.json` -> layout
_OPEN_CLIP_WEIGHTS: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_TRANSFORMERS_WEIGHTS: Final = (
    "model.safetensors",
    f"model.safetensors{INDEX_SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
)
_IMAGES: Final = ("preprocessor_config.json", "processor_config.json")
_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")
_SECTIONS: Final = {"embed_dim", "vision_cfg", "text_cfg"}  # keys that open_clip's `model_cfg` must have


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """Everything known about a model before its weights are read.

    Attributes:
        name: Name for people.
        architecture: open_clip's model configuration.
        siglip: Arguments of timm's `VisionTransformer`, and `norm_eps`, for the image tower of a SigLIP of any size,
            which open_clip cannot build. None for other models.
        input: The images that the model takes.
        folder: Relative tokenizer paths start here; None for open_clip's own models.
        weights: A file, or the index of several; None if open_clip downloads it.
        pretrained: open_clip's tag of the weights; None for a file.
        calibrations: Calibrations of scores that the model brings.
        tokenizer: A vocabulary that the checkpoint brings; None for the tokenizer of `architecture`.
        described_by: Files that describe a checkpoint, for people; "" for a model with a configuration.
        layout: Layout of the checkpoint, see `layouts`; "" for a tag.
        tower: Kind of the image tower; None before `usable_model`.
        fingerprint: Hash of architecture, input, vocabulary and weights; "" before `usable_model`.
    """

    name: str
    architecture: dict[str, Any]
    siglip: dict[str, Any] | None = None
    input: InputSpec
    folder: Path | None = None
    weights: Path | None = None
    pretrained: str | None = None
    calibrations: tuple[Path, ...] = ()
    tokenizer: Path | None = None
    described_by: str = ""
    layout: str = ""
    tower: TowerKind | None = None
    fingerprint: str = ""

    @property
    def key(self) -> str:
        """Key of the configuration that names the weights, for messages."""
        return _KEY if self.described_by else "model.weights"


def describe(config: ModelConfig) -> ModelDescription:
    """Describe a model: its architecture, input, tokenizer and weights file.

    Raise ConfigError for an unknown name or an unusable model file, and WeightsError for files that are missing or
    damaged, or where nothing identifies the architecture.
    """
    check_model_files(config)
    if config.checkpoint is not None:
        return _describe_checkpoint(config.checkpoint.expanduser())
    if config.name in CATALOG:
        files = resolve(config.name)
        description = _read_model_file(files.config, files.weights)
        return replace(description, name=config.name, calibrations=files.calibrations, layout=OPEN_CLIP)
    weights = None if config.weights is None else config.weights.expanduser()
    if config.config is not None:
        return _read_model_file(config.config.expanduser(), weights)
    assert config.name is not None  # noqa: S101  `check_model_files` has looked
    return _describe_name(config.name, config.pretrained, weights)


def _describe_name(name: str, tag: str | None, weights: Path | None) -> ModelDescription:
    architecture = open_clip.get_model_config(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag is not None and tag not in tags:
        raise ConfigError(f"model.pretrained: open_clip has no tag {tag!r} for {name}; it has {', '.join(tags)}")
    # How images are prepared for the weights of the tag, or for all weights of the name where these agree: SigLIP's
    # mean, for one, is not OpenAI's, and the wrong one raises no error.
    tag_configs = [open_clip.get_pretrained_cfg(name, candidate) for candidate in ([tag] if tag else tags)]
    images = [_images_of(tag_config) for tag_config in tag_configs]
    if tag and tag_configs[0].get("quick_gelu"):
        architecture["quick_gelu"] = True
    spec = _input_spec(architecture, images[0] if images and images.count(images[0]) == len(images) else {})
    return ModelDescription(name=name, architecture=architecture, input=spec, weights=weights, pretrained=tag)


def _images_of(tag_config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tag_config[key] for key in ("mean", "std", "interpolation") if tag_config.get(key)}


def _read_model_file(path: Path, weights: Path | None) -> ModelDescription:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", key="model.config") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}", key="model.config") from error
    architecture = parsed.get("model_cfg", parsed) if isinstance(parsed, dict) else {}
    if not architecture.keys() >= _SECTIONS:
        raise ConfigError(f"{path} lacks embed_dim, vision_cfg or text_cfg", key="model.config")
    spec = _input_spec(architecture, parsed.get("preprocess_cfg", {}))
    tokenizer.check_options(path, architecture["text_cfg"].get("tokenizer_kwargs") or {})
    return ModelDescription(name=path.stem, architecture=architecture, input=spec, folder=path.parent, weights=weights)


def _input_spec(architecture: Mapping[str, Any], preprocess: Any) -> InputSpec:
    vision = architecture["vision_cfg"]
    if not all(isinstance(part, dict) for part in (vision, architecture["text_cfg"], preprocess)):
        raise ConfigError("vision_cfg, text_cfg and preprocess_cfg must hold keys", key="model.config")
    size, stride = sides_px(vision)
    return InputSpec(
        size_px=size,
        patch_px=stride,
        mean=tuple(preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(preprocess.get("std") or open_clip.OPENAI_DATASET_STD),
        interpolation=preprocess.get("interpolation") or "bicubic",
    )


# --- checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class _CheckpointFiles:
    """The files of a checkpoint; a section is empty where the file does not exist."""

    folder: Path
    weights: Path
    state: State  # without numbers
    layout: str
    open_clip_config: dict[str, Any]  # `open_clip_config.json`
    params: dict[str, str]  # `params.txt`
    transformers_config: dict[str, Any]  # `config.json`


def _describe_checkpoint(path: Path) -> ModelDescription:
    name = path.resolve().name if path.is_dir() else path.stem
    commit = path / "refs" / "main"
    if commit.is_file() and (path / "snapshots").is_dir():  # a repository in the hub's cache
        path = path / "snapshots" / commit.read_text(encoding="utf-8").strip()
    if (path / TUNED_MODEL / OPEN_CLIP_CONFIG).is_file():
        path = path / TUNED_MODEL
    folder = path if path.is_dir() else path.parent
    open_clip_config = read_json(folder / OPEN_CLIP_CONFIG)
    transformers_config = read_json(folder / "config.json")
    model_type = transformers_config.get("model_type")
    if not open_clip_config and model_type is not None and model_type not in _MODEL_TYPES:
        raise WeightsError(
            f"{folder / 'config.json'} describes a model of type {model_type!r}; expected "
            f"{' or '.join(_MODEL_TYPES)}, as transformers' CLIPModel and SiglipModel have",
            key=_KEY,
        )
    weights = _weights_in(path, prefer_open_clip=bool(open_clip_config)) if path.is_dir() else path
    state = read_state(weights, _KEY, numbers=False)
    common: dict[str, Any] = {"folder": folder, "weights": weights, "layout": layout_of(state, weights, _KEY)}
    files = _CheckpointFiles(
        **common,
        state=state,
        open_clip_config=open_clip_config,
        params=_params(folder),
        transformers_config=transformers_config if model_type in _MODEL_TYPES else {},
    )
    try:
        fields, preprocess = next(read(files) for fits, read in _DESCRIBED_BY if fits(files))
        architecture = fields["architecture"]
        tokenizer.check_options(folder, architecture["text_cfg"].get("tokenizer_kwargs") or {})
        return ModelDescription(name=name, **common, **fields, input=_input_spec(architecture, preprocess))
    except (WeightsError, ConfigError) as error:
        if error.key:
            raise
        place = weights if isinstance(error, WeightsError) else folder
        raise type(error)(f"{place}: {error}", key=_KEY) from error


def _weights_in(folder: Path, *, prefer_open_clip: bool) -> Path:
    usual_names = _TRANSFORMERS_WEIGHTS + _OPEN_CLIP_WEIGHTS
    if prefer_open_clip:
        usual_names = _OPEN_CLIP_WEIGHTS + _TRANSFORMERS_WEIGHTS
    for name in usual_names:
        if (folder / name).is_file():
            return folder / name
    names = sorted(file.name for file in folder.iterdir())
    files = [name for name in names if name.endswith(_SUFFIXES) and (folder / name).is_file()]
    if len(files) == 1:
        return folder / files[0]
    if files:
        examples = ", ".join(files[:4])
        raise WeightsError(
            f"{folder} holds {len(files)} files of weights ({examples}): give the one that is meant", key=_KEY
        )
    content = f"found {', '.join(names[:4])}" if names else "the folder is empty"
    raise WeightsError(
        f"{folder} holds no weights: expected {', '.join(_TRANSFORMERS_WEIGHTS[::2])}, "
        f"{_OPEN_CLIP_WEIGHTS[0]} or one {'/'.join(_SUFFIXES)} file; {content}",
        key=_KEY,
    )


def _params(folder: Path) -> dict[str, str]:
    """Read the trainer's `params.txt` beside a checkpoint or above its folder `checkpoints`, if there is one."""
    for file in (folder / "params.txt", folder.parent / "params.txt"):
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            params = {key: value for key, colon, value in (line.partition(": ") for line in lines) if colon}
            if "model" in params:
                return params
    return {}


_Fields = tuple[dict[str, Any], dict[str, Any]]  # attributes of `ModelDescription`, and open_clip's `preprocess_cfg`


def _read_open_clip_config(files: _CheckpointFiles) -> _Fields:
    architecture = files.open_clip_config.get("model_cfg")
    if not isinstance(architecture, dict) or not architecture.keys() >= _SECTIONS:
        raise ConfigError(f"{OPEN_CLIP_CONFIG} lacks embed_dim, vision_cfg or text_cfg")
    siglip = tokenizer.takes_texts_of_siglip(architecture["text_cfg"])
    vocabulary = tokenizer.tokenizer_file(files.folder) if siglip else None
    fields = {"described_by": OPEN_CLIP_CONFIG, "architecture": architecture, "tokenizer": vocabulary}
    return fields, files.open_clip_config.get("preprocess_cfg") or {}


def _read_params(files: _CheckpointFiles) -> _Fields:
    params = files.params
    name = params["model"].replace("/", "-")
    if name not in open_clip.list_models():
        raise WeightsError(f"its params.txt names the model {name}, which open_clip does not have")
    architecture = open_clip.get_model_config(name)
    # The loss of a SigLIP has a bias, which the checkpoint of any architecture then holds.
    flags = {
        "force_quick_gelu": {"quick_gelu": True},
        "force_custom_text": {"custom_text": True},
        "siglip": {"init_logit_bias": -10},
    }
    for flag, options in flags.items():
        architecture |= options if params.get(flag) == "True" else {}
    if (context := params.get("force_context_length", "None")).isdigit():
        architecture["text_cfg"]["context_length"] = int(context)
    sizes = [int(number) for number in re.findall(r"\d+", params.get("force_image_size", ""))]
    if sizes:
        architecture["vision_cfg"]["image_size"] = sizes[0] if len(set(sizes)) == 1 else sizes
    # The trainer takes mean, deviation and interpolation from the tag that it starts from; its arguments override them.
    preprocess = _images_of(open_clip.get_pretrained_cfg(name, params.get("pretrained", "")))
    for key in ("mean", "std"):
        numbers = [float(number) for number in re.findall(r"\d*\.?\d+", params.get(f"image_{key}", ""))]
        if len(numbers) == 3:
            preprocess[key] = numbers
    if params.get("image_interpolation") in settings.RESAMPLE.values():
        preprocess["interpolation"] = params["image_interpolation"]
    return {"described_by": f"params.txt, which names {name}", "architecture": architecture}, preprocess


def _read_openai_tensors(files: _CheckpointFiles) -> _Fields:
    # All of OpenAI's models were trained with QuickGELU.
    architecture = {**settings.sizes_of(convert_to_open_clip(files.state, OPENAI)), "quick_gelu": True}
    return {"described_by": "its tensors", "architecture": architecture}, {}


def _read_transformers_config(files: _CheckpointFiles) -> _Fields:
    layout = _MODEL_TYPES[files.transformers_config["model_type"]]
    # The same sizes, whoever's names the tensors have.
    if layout != files.layout and not (files.layout == OPEN_CLIP and layout == CLIP):
        raise WeightsError(f"its config.json says {layout}, and its tensors are those of {files.layout}")
    described_by = ["config.json"]
    architecture, siglip = settings.architecture_of(files.transformers_config, layout)
    preprocessor, processor = (read_json(files.folder / name) for name in _IMAGES)
    images = preprocessor.get("image_processor", preprocessor) or processor.get("image_processor", {})
    described_by += [_IMAGES[0 if preprocessor else 1]] if images else []
    vocabulary = None
    if layout == SIGLIP:
        vocabulary = tokenizer.tokenizer_file(files.folder)
        if vocabulary is None:
            raise WeightsError(
                f"no tokenizer.json or spiece.model in {files.folder}: save the model's tokenizer there too"
            )
        described_by.append(vocabulary.name)
        architecture["text_cfg"]["tokenizer_kwargs"] = {"clean": tokenizer.cleaning(vocabulary)}
    else:
        tokenizer.check_vocabulary(files.folder, architecture["text_cfg"]["vocab_size"])
    fields = {
        "described_by": ", ".join(described_by),
        "architecture": architecture,
        "siglip": siglip,
        "tokenizer": vocabulary,
    }
    return fields, settings.preprocess_of(images, layout)


def _refuse(files: _CheckpointFiles) -> _Fields:
    raise WeightsError(
        f"nothing says what model this is (no config.json, {OPEN_CLIP_CONFIG} or params.txt beside it), and tensors do "
        f"not show the activation: give its name in open_clip, model.name=NAME with model.weights={files.weights}, or "
        "describe it, model.config=FILE.json"
    )


_DESCRIBED_BY: Final[tuple[tuple[Callable[[_CheckpointFiles], bool], Callable[[_CheckpointFiles], _Fields]], ...]] = (
    (lambda files: files.layout == OPEN_CLIP and bool(files.open_clip_config), _read_open_clip_config),
    (lambda files: files.layout == OPEN_CLIP and bool(files.params), _read_params),
    (lambda files: files.layout == OPENAI, _read_openai_tensors),
    (lambda files: bool(files.transformers_config), _read_transformers_config),
    (lambda files: True, _refuse),
)
"""Condition -> the function that reads such a checkpoint; the first that fits counts."""
