"""A checkpoint on disk, a folder or a file, and what it and the files beside it say of the model.

What is read beside the weights, all of it data and none of it code:

    file                          written by                          says
    open_clip_config.json         open_clip's push_to_hf_hub          architecture, images, tokenizer
    config.json                   transformers' save_pretrained       architecture
    preprocessor_config.json,     transformers' save_pretrained       images
        processor_config.json
    tokenizer.json, ...           transformers' save_pretrained       tokenizer of a SigLIP, see `own_tokenizer`
    params.txt                    open_clip's trainer                 name of the architecture, activation, images

Without any of these the tensors alone have to tell, see `from_shapes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stages.contract.errors import ConfigError, WeightsError, one_line
from stages.shared.model.checkpoints import from_shapes, from_transformers
from stages.shared.model.checkpoints.layouts import OPEN_CLIP, OPENAI, recognise
from stages.shared.model.checkpoints.own_tokenizer import cleaning, takes_texts_of_siglip, tokenizer_file
from stages.shared.model.checkpoints.state import INDEX_SUFFIX, Shapes, read_shapes
from stages.shared.model.deferred import open_clip

KEY: Final = "model.checkpoint"
"""The key of the configuration, for messages."""

OPEN_CLIP_CONFIG: Final = "open_clip_config.json"

TUNED_MODEL: Final = "model"
"""The folder, inside that of a fine-tuning, that holds the tuned model."""

_OPEN_CLIP_WEIGHTS: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_TRANSFORMERS_WEIGHTS: Final = tuple(
    name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX_SUFFIX)
)
_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was recognised.

    Attributes:
        name: for people: of the folder, or of the file without its ending.
        layout: whose it is, see `layouts`.
        described_by: what says what the model is, for people: names of files, or "its tensors".
        architecture: open_clip's `model_cfg`, see `load` for `siglip_trunk`.
        preprocess: open_clip's `preprocess_cfg`: mean, std and interpolation, where they are known.
        weights: the file, or the index of several.
        tokenizer: file of its own vocabulary; None for that of `architecture`.
    """

    name: str
    layout: str
    described_by: str
    architecture: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path
    tokenizer: Path | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Find the weights of a checkpoint, recognise whose they are, and read what says what the model is.

    Args:
        path: a folder or a file.

    Raises:
        WeightsError: no weights are there, or they are damaged, of an unknown layout, or of an architecture that
            nothing tells.
        ConfigError: what a file says of the model makes no sense or cannot be built.
    """
    path = path.expanduser()
    if not path.exists():
        raise WeightsError(f"{KEY}: no file or folder {path}")
    name = path.resolve().name if path.is_dir() else path.stem
    path = _snapshot(path)
    if (path / TUNED_MODEL / OPEN_CLIP_CONFIG).is_file():
        path = path / TUNED_MODEL
    folder = path if path.is_dir() else path.parent
    settings = _json(folder / "config.json")
    ours = _json(folder / OPEN_CLIP_CONFIG)
    kind = settings.get("model_type")
    if not ours and kind is not None and kind not in from_transformers.MODEL_TYPES:
        raise WeightsError(
            f"{KEY}: {folder / 'config.json'} describes a model of type {kind!r}; expected "
            f"{' or '.join(from_transformers.MODEL_TYPES)}, as transformers' CLIPModel and SiglipModel have"
        )
    weights = _weights_in(path, ours=bool(ours)) if path.is_dir() else path
    shapes = read_shapes(weights, KEY)
    layout = recognise(shapes, weights, KEY)
    common: dict[str, Any] = {"name": name, "layout": layout, "weights": weights}
    try:
        if layout == OPEN_CLIP and ours:
            return _of_open_clip(common, ours, folder)
        if layout == OPEN_CLIP and (trained := _params(folder)):
            return _of_trainer(common, trained)
        if layout == OPENAI:
            architecture = {**from_shapes.architecture_of(shapes), "quick_gelu": True}
            return Checkpoint(**common, described_by="its tensors", architecture=architecture, preprocess={})
        if layout == OPEN_CLIP and kind is None:
            return _by_name(common, shapes)
        return _of_transformers(common, settings, folder, shapes)
    except WeightsError as error:
        message = str(error)
        raise WeightsError(message if message.startswith(KEY) else f"{KEY}: {weights}: {message}") from error
    except ConfigError as error:
        raise ConfigError(f"{KEY}: {folder}: {error}") from error


def _snapshot(path: Path) -> Path:
    """The files of a repository in the hub's cache, whose folder holds them as one of several `snapshots`."""
    commit = path / "refs" / "main"
    if commit.is_file() and (path / "snapshots").is_dir():
        return path / "snapshots" / commit.read_text(encoding="utf-8").strip()
    return path


def _weights_in(folder: Path, *, ours: bool) -> Path:
    """The weights in a folder: by the names that libraries give them, or the only ones."""
    names = (*_OPEN_CLIP_WEIGHTS, *_TRANSFORMERS_WEIGHTS) if ours else (*_TRANSFORMERS_WEIGHTS, *_OPEN_CLIP_WEIGHTS)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if len(files) == 1:
        return files[0]
    if files:
        shown = ", ".join(file.name for file in files[:4])
        raise WeightsError(f"{KEY}: {folder} holds {len(files)} files of weights ({shown}): give the one that is meant")
    others = sorted(file.name for file in folder.iterdir())
    found = f"found {', '.join(others[:4])}" if others else "the folder is empty"
    raise WeightsError(
        f"{KEY}: {folder} holds no weights: expected {', '.join(_TRANSFORMERS_WEIGHTS[::2])}, "
        f"{_OPEN_CLIP_WEIGHTS[0]} or one {'/'.join(_SUFFIXES)} file; {found}"
    )


def _of_open_clip(common: Mapping[str, Any], parsed: Mapping[str, Any], folder: Path) -> Checkpoint:
    architecture = parsed.get("model_cfg")
    if not isinstance(architecture, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= architecture.keys():
        raise ConfigError(f"{OPEN_CLIP_CONFIG} lacks embed_dim, vision_cfg or text_cfg")
    own = tokenizer_file(folder) if takes_texts_of_siglip(architecture["text_cfg"]) else None
    return Checkpoint(
        **common,
        described_by=OPEN_CLIP_CONFIG,
        architecture=architecture,
        preprocess=parsed.get("preprocess_cfg") or {},
        tokenizer=own,
    )


def _of_trainer(common: Mapping[str, Any], params: Mapping[str, str]) -> Checkpoint:
    """What open_clip's trainer notes of its arguments, a line each."""
    name = params["model"].replace("/", "-")
    if name not in open_clip.list_models():
        raise WeightsError(f"its params.txt names the model {name}, which open_clip does not have")
    architecture = open_clip.get_model_config(name)
    if params.get("force_quick_gelu") == "True":
        architecture["quick_gelu"] = True
    if params.get("siglip") == "True":  # its loss has a bias, which the checkpoint of any architecture then holds
        architecture["init_logit_bias"] = -10
    if params.get("force_custom_text") == "True":
        architecture["custom_text"] = True
    sizes = [int(number) for number in re.findall(r"\d+", params.get("force_image_size", ""))]
    if sizes:
        architecture["vision_cfg"]["image_size"] = sizes[0] if len(set(sizes)) == 1 else sizes
    preprocess: dict[str, Any] = {}
    for key in ("mean", "std"):
        numbers = [float(number) for number in re.findall(r"\d*\.?\d+", params.get(f"image_{key}", ""))]
        if len(numbers) == 3:
            preprocess[key] = numbers
    if params.get("image_interpolation") in from_transformers.RESAMPLE.values():
        preprocess["interpolation"] = params["image_interpolation"]
    described_by = f"params.txt, which names {name}"
    return Checkpoint(**common, described_by=described_by, architecture=architecture, preprocess=preprocess)


def _params(folder: Path) -> dict[str, str]:
    """The trainer's `params.txt` beside a checkpoint or above its folder `checkpoints`; empty if there is none."""
    for file in (folder / "params.txt", folder.parent / "params.txt"):
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            found = {key: value for key, colon, value in (line.partition(": ") for line in lines) if colon}
            if "model" in found:
                return found
    return {}


def _by_name(common: Mapping[str, Any], shapes: Shapes) -> Checkpoint:
    """A checkpoint that nothing describes, if its sizes are those of exactly one of open_clip's models."""
    sizes = from_shapes.architecture_of(shapes)
    names = from_shapes.names_of(sizes)
    weights = common["weights"]
    if len(names) == 1:
        described_by = f"its tensors, which have the sizes of {names[0]}"
        architecture = open_clip.get_model_config(names[0])
        return Checkpoint(**common, described_by=described_by, architecture=architecture, preprocess={})
    if names:
        raise WeightsError(
            f"its tensors fit {' and '.join(names)}, which differ in what tensors do not tell (the activation): say "
            f"which it is, model.name={names[0]} with model.weights={weights}"
        )
    vision = sizes["vision_cfg"]
    raise WeightsError(
        f"nothing says what model this is (no config.json, {OPEN_CLIP_CONFIG} or params.txt beside it), and its "
        f"sizes are of none of open_clip's models: {vision['image_size']} px, patches of {vision['patch_size']}, width "
        f"{vision['width']}, {vision['layers']} layers, {sizes['embed_dim']} numbers an embedding. Describe it, "
        f"model.config=FILE.json with model.weights={weights}"
    )


def _of_transformers(common: dict[str, Any], settings: Mapping[str, Any], folder: Path, shapes: Shapes) -> Checkpoint:
    layout = common["layout"]
    kind = settings.get("model_type")
    stated = layout if kind is None else from_transformers.MODEL_TYPES[kind]
    # The same sizes, whoever's names the tensors have.
    if stated != layout and not (layout == OPEN_CLIP and stated == from_transformers.CLIP):
        raise WeightsError(f"its config.json says {stated}, and its tensors are those of {layout}")
    if kind is None and layout == from_transformers.CLIP:
        return _by_name(common, from_shapes.renamed(shapes, layout))
    described_by = ["its tensors" if kind is None else "config.json"]
    settings = from_shapes.siglip_settings(shapes) if kind is None else settings
    architecture = from_transformers.architecture_of(settings, stated)
    images, source = _images(folder)
    if images:
        described_by.append(source)
    own = None
    if stated == from_transformers.SIGLIP:
        own = tokenizer_file(folder)
        if own is None:
            raise WeightsError(f"no tokenizer.json or spiece.model in {folder}: save the model's tokenizer there too")
        described_by.append(own.name)
        architecture["text_cfg"]["tokenizer_kwargs"] = {"clean": cleaning(own)}
    else:
        _check_vocabulary(folder, architecture["text_cfg"]["vocab_size"])
    preprocess = from_transformers.preprocess_of(images, stated)
    return Checkpoint(
        **common,
        described_by=", ".join(described_by),
        architecture=architecture,
        preprocess=preprocess,
        tokenizer=own,
    )


def _images(folder: Path) -> tuple[dict[str, Any], str]:
    """What a file of `transformers` says of the images, and its name; empty if there is none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        found = _json(folder / name)
        found = found.get("image_processor", {} if name.startswith("processor") else found)
        if found:
            return found, name
    return {}, ""


def _check_vocabulary(folder: Path, size: int) -> None:
    """Raise WeightsError if the vocabulary of a CLIP is not CLIP's own, which is the one that is used."""
    own = open_clip.tokenizer.SimpleTokenizer()
    if size < own.vocab_size:
        raise WeightsError(f"its vocabulary has {size} tokens: expected CLIP's own, with {own.vocab_size}")
    file = folder / "merges.txt"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    else:
        listed = _json(folder / "tokenizer.json").get("model", {}).get("merges")
        if not listed:
            return
        file, merges = folder / "tokenizer.json", [tuple(m.split() if isinstance(m, str) else m) for m in listed]
    if merges != list(own.bpe_ranks):
        raise WeightsError(f"{file} is not the vocabulary of CLIP, which is the only one of a CLIP that can be read")


def _json(file: Path) -> dict[str, Any]:
    """What a JSON file holds; empty if it is not there. Raises WeightsError for a file that holds no keys."""
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"{KEY}: cannot read {file}: {one_line(error)}") from error
    if not isinstance(parsed, dict):
        raise WeightsError(f"{KEY}: {file} holds a {type(parsed).__name__}, not keys")
    return parsed
