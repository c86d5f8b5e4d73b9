"""One answer to "which model is this?": architecture, input, tokenizer and weights of any model that can be named.

`describe` reads no weights, but for the shapes of a checkpoint that nothing else describes. A model is named in one of
the ways of `ModelConfig`. These files beside the weights of a checkpoint describe it, all of them data and no code:

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
from stages.shared.model.checkpoints.layouts import CLIP, OPEN_CLIP, OPENAI, SIGLIP, arranged, layout_of
from stages.shared.model.checkpoints.state import INDEX_SUFFIX, State, read_json, read_state
from stages.shared.model.config import InputSpec, ModelConfig, TowerKind, check_model_files
from stages.shared.model.towers.plan import sides_px

OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
TUNED_MODEL: Final = "model"  # the folder, inside that of a fine-tuning, that holds the tuned model

_KEY: Final = "model.checkpoint"  # of the configuration, for messages
_MODEL_TYPES: Final = {"clip": CLIP, "siglip": SIGLIP}  # `model_type` of a `config.json` -> layout
_OPEN_CLIP_WEIGHTS: Final = (
    "open_clip_model.safetensors",
    *("open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
)
_TRANSFORMERS_WEIGHTS: Final = tuple(
    name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX_SUFFIX)
)
_IMAGES: Final = ("preprocessor_config.json", "processor_config.json")
_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")
_SECTIONS: Final = {"embed_dim", "vision_cfg", "text_cfg"}  # keys that open_clip's `model_cfg` must have


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """A model before its weights are read. The last three are known to `usable_model`.

    `siglip` holds the arguments of timm's `VisionTransformer`, and `norm_eps`, for the image tower of a SigLIP of any
    size, which open_clip cannot build.
    """

    name: str  # for people
    architecture: dict[str, Any]  # open_clip's model configuration
    siglip: dict[str, Any] | None = None
    input: InputSpec
    folder: Path | None = None  # relative tokenizer paths start here; None for open_clip's own models
    weights: Path | None = None  # a file, or the index of several; None if open_clip downloads it
    pretrained: str | None = None  # open_clip's tag of the weights; None for a file
    calibrations: tuple[Path, ...] = ()  # of scores, where the model brings some
    tokenizer: Path | None = None  # a vocabulary that the checkpoint brings; None for the tokenizer of `architecture`
    described_by: str = ""  # files that describe a checkpoint, for people; "" for a model with a configuration
    layout: str = ""  # of the checkpoint, see `layouts`; "" for a tag
    tower: TowerKind | None = None
    fingerprint: str = ""  # of architecture, input, vocabulary and weights

    @property
    def key(self) -> str:
        """Key of the configuration that names the weights, for messages."""
        return _KEY if self.described_by else "model.weights"


def describe(config: ModelConfig) -> ModelDescription:
    """Look up architecture, input, tokenizer and weights file of a model.

    Raise ConfigError for an unknown name or an unusable model file, and WeightsError for files that are missing or
    damaged, or where nothing identifies the architecture.
    """
    check_model_files(config)
    if config.checkpoint is not None:
        return _checkpoint(config.checkpoint.expanduser())
    if config.name in CATALOG:
        files = resolve(config.name)
        found = _model_file(files.config, files.weights)
        return replace(found, name=config.name, calibrations=files.calibrations, layout=OPEN_CLIP)
    weights = None if config.weights is None else config.weights.expanduser()
    if config.config is not None:
        return _model_file(config.config.expanduser(), weights)
    assert config.name is not None  # noqa: S101  `check_model_files` has looked
    return _open_clip_name(config.name, config.pretrained, weights)


def _open_clip_name(name: str, tag: str | None, weights: Path | None) -> ModelDescription:
    architecture = open_clip.get_model_config(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag is not None and tag not in tags:
        raise ConfigError(f"model.pretrained: open_clip has no tag {tag!r} for {name}; it has {', '.join(tags)}")
    # How images are prepared for the weights of the tag, or for all weights of the name where these agree: SigLIP's
    # mean, for one, is not OpenAI's, and the wrong one raises no error.
    known = [open_clip.get_pretrained_cfg(name, each) for each in ([tag] if tag else tags)]
    found = [_images_of(each) for each in known]
    if tag and known[0].get("quick_gelu"):
        architecture["quick_gelu"] = True
    spec = _input_spec(architecture, found[0] if found and all(each == found[0] for each in found) else {})
    return ModelDescription(name=name, architecture=architecture, input=spec, weights=weights, pretrained=tag)


def _images_of(tag: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tag[key] for key in ("mean", "std", "interpolation") if tag.get(key)}


def _model_file(path: Path, weights: Path | None) -> ModelDescription:
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
class _Found:
    """The files of a checkpoint."""

    folder: Path
    weights: Path
    state: State  # without numbers
    layout: str
    ours: dict[str, Any]  # `open_clip_config.json`
    trained: dict[str, str]  # `params.txt`
    theirs: dict[str, Any]  # `config.json`


def _checkpoint(path: Path) -> ModelDescription:
    name = path.resolve().name if path.is_dir() else path.stem
    commit = path / "refs" / "main"
    if commit.is_file() and (path / "snapshots").is_dir():  # a repository in the hub's cache
        path = path / "snapshots" / commit.read_text(encoding="utf-8").strip()
    if (path / TUNED_MODEL / OPEN_CLIP_CONFIG).is_file():
        path = path / TUNED_MODEL
    folder = path if path.is_dir() else path.parent
    ours = read_json(folder / OPEN_CLIP_CONFIG)
    theirs = read_json(folder / "config.json")
    kind = theirs.get("model_type")
    if not ours and kind is not None and kind not in _MODEL_TYPES:
        raise WeightsError(
            f"{folder / 'config.json'} describes a model of type {kind!r}; expected "
            f"{' or '.join(_MODEL_TYPES)}, as transformers' CLIPModel and SiglipModel have",
            key=_KEY,
        )
    weights = _weights_in(path, ours=bool(ours)) if path.is_dir() else path
    state = read_state(weights, _KEY, numbers=False)
    common: dict[str, Any] = {"folder": folder, "weights": weights, "layout": layout_of(state, weights, _KEY)}
    theirs = theirs if kind in _MODEL_TYPES else {}
    found = _Found(**common, state=state, ours=ours, trained=_params(folder), theirs=theirs)
    try:
        says, preprocess = next(read(found) for fits, read in _DESCRIBED_BY if fits(found))
        tokenizer.check_options(folder, says["architecture"]["text_cfg"].get("tokenizer_kwargs") or {})
        return ModelDescription(name=name, **common, **says, input=_input_spec(says["architecture"], preprocess))
    except (WeightsError, ConfigError) as error:
        if error.key:
            raise
        where = weights if isinstance(error, WeightsError) else folder
        raise type(error)(f"{where}: {error}", key=_KEY) from error


def _weights_in(folder: Path, *, ours: bool) -> Path:
    usual = (_OPEN_CLIP_WEIGHTS, _TRANSFORMERS_WEIGHTS) if ours else (_TRANSFORMERS_WEIGHTS, _OPEN_CLIP_WEIGHTS)
    for name in (*usual[0], *usual[1]):
        if (folder / name).is_file():
            return folder / name
    names = sorted(file.name for file in folder.iterdir())
    files = [name for name in names if name.endswith(_SUFFIXES) and (folder / name).is_file()]
    if len(files) == 1:
        return folder / files[0]
    if files:
        shown = ", ".join(files[:4])
        raise WeightsError(
            f"{folder} holds {len(files)} files of weights ({shown}): give the one that is meant", key=_KEY
        )
    found = f"found {', '.join(names[:4])}" if names else "the folder is empty"
    raise WeightsError(
        f"{folder} holds no weights: expected {', '.join(_TRANSFORMERS_WEIGHTS[::2])}, "
        f"{_OPEN_CLIP_WEIGHTS[0]} or one {'/'.join(_SUFFIXES)} file; {found}",
        key=_KEY,
    )


def _params(folder: Path) -> dict[str, str]:
    """The trainer's `params.txt` beside a checkpoint or above its folder `checkpoints`, if there is one."""
    for file in (folder / "params.txt", folder.parent / "params.txt"):
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            found = {key: value for key, colon, value in (line.partition(": ") for line in lines) if colon}
            if "model" in found:
                return found
    return {}


_Says = tuple[dict[str, Any], dict[str, Any]]  # attributes of `ModelDescription`, and open_clip's `preprocess_cfg`


def _by_open_clip(found: _Found) -> _Says:
    architecture = found.ours.get("model_cfg")
    if not isinstance(architecture, dict) or not architecture.keys() >= _SECTIONS:
        raise ConfigError(f"{OPEN_CLIP_CONFIG} lacks embed_dim, vision_cfg or text_cfg")
    siglip = tokenizer.takes_texts_of_siglip(architecture["text_cfg"])
    own = tokenizer.tokenizer_file(found.folder) if siglip else None
    says = {"described_by": OPEN_CLIP_CONFIG, "architecture": architecture, "tokenizer": own}
    return says, found.ours.get("preprocess_cfg") or {}


def _by_trainer(found: _Found) -> _Says:
    params = found.trained
    name = params["model"].replace("/", "-")
    if name not in open_clip.list_models():
        raise WeightsError(f"its params.txt names the model {name}, which open_clip does not have")
    architecture = open_clip.get_model_config(name)
    # The loss of a SigLIP has a bias, which the checkpoint of any architecture then holds.
    forced = {"force_quick_gelu": {"quick_gelu": True}, "force_custom_text": {"custom_text": True}}
    for argument, settled in {**forced, "siglip": {"init_logit_bias": -10}}.items():
        architecture |= settled if params.get(argument) == "True" else {}
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


def _by_tensors_of_openai(found: _Found) -> _Says:
    # All of OpenAI's models were trained with QuickGELU.
    architecture = {**settings.sizes_of(arranged(found.state, OPENAI)), "quick_gelu": True}
    return {"described_by": "its tensors", "architecture": architecture}, {}


def _by_transformers(found: _Found) -> _Says:
    layout = _MODEL_TYPES[found.theirs["model_type"]]
    # The same sizes, whoever's names the tensors have.
    if layout != found.layout and not (found.layout == OPEN_CLIP and layout == CLIP):
        raise WeightsError(f"its config.json says {layout}, and its tensors are those of {found.layout}")
    described_by = ["config.json"]
    architecture, siglip = settings.architecture_of(found.theirs, layout)
    alone, inside = (read_json(found.folder / name) for name in _IMAGES)
    images = alone.get("image_processor", alone) or inside.get("image_processor", {})
    described_by += [_IMAGES[0 if alone else 1]] if images else []
    own = None
    if layout == SIGLIP:
        own = tokenizer.tokenizer_file(found.folder)
        if own is None:
            raise WeightsError(
                f"no tokenizer.json or spiece.model in {found.folder}: save the model's tokenizer there too"
            )
        described_by.append(own.name)
        architecture["text_cfg"]["tokenizer_kwargs"] = {"clean": tokenizer.cleaning(own)}
    else:
        tokenizer.check_vocabulary(found.folder, architecture["text_cfg"]["vocab_size"])
    says = {"described_by": ", ".join(described_by), "architecture": architecture, "siglip": siglip, "tokenizer": own}
    return says, settings.preprocess_of(images, layout)


def _by_nothing(found: _Found) -> _Says:
    raise WeightsError(
        f"nothing says what model this is (no config.json, {OPEN_CLIP_CONFIG} or params.txt beside it), and tensors do "
        f"not show the activation: give its name in open_clip, model.name=NAME with model.weights={found.weights}, or "
        "describe it, model.config=FILE.json"
    )


_DESCRIBED_BY: Final[tuple[tuple[Callable[[_Found], bool], Callable[[_Found], _Says]], ...]] = (
    (lambda found: found.layout == OPEN_CLIP and bool(found.ours), _by_open_clip),
    (lambda found: found.layout == OPEN_CLIP and bool(found.trained), _by_trainer),
    (lambda found: found.layout == OPENAI, _by_tensors_of_openai),
    (lambda found: bool(found.theirs), _by_transformers),
    (lambda found: True, _by_nothing),
)
"""Condition -> the function that reads such a checkpoint; the first that fits counts."""
