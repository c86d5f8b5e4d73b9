"""One answer to "which model is this?": architecture, input, tokenizer and weights of any model that can be named.

`ModelConfig` lists the ways to name a model. A checkpoint is described by the files beside its
weights, see `checkpoints.folder`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import open_clip
import torch

from phrasebox.stages.contract.errors import ConfigError, WeightsError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.catalog import CATALOG, find_weights
from phrasebox.stages.model.checkpoints.dual_encoders import DualEncoderKind, kind_of, plain_settings
from phrasebox.stages.model.checkpoints.files import (
    OPEN_CLIP_CONFIG,
    TRANSFORMERS_CONFIG,
    undescribed,
)
from phrasebox.stages.model.checkpoints.folder import Checkpoint, read_checkpoint
from phrasebox.stages.model.checkpoints.layouts import (
    CLIP,
    OPEN_CLIP,
    OPENAI,
    SIGLIP,
    convert_to_open_clip,
    layout_of,
)
from phrasebox.stages.model.checkpoints.settings import (
    RESAMPLE,
    SIGLIP_IMAGES,
    architecture_of_clip,
    architecture_of_siglip,
    preprocess_of,
)
from phrasebox.stages.model.checkpoints.state import read_json, read_shapes, weight_files
from phrasebox.stages.model.config import (
    InputSpec,
    ModelConfig,
    ModelDescription,
    about,
    check_model_files,
)
from phrasebox.stages.model.dual_encoder import architecture_of_dual_encoder, open_empty
from phrasebox.stages.model.module import build_module, load_into
from phrasebox.stages.model.tokenizer import (
    check_vocabulary,
    cleaning,
    named_vocabulary,
    settings_of_tokenizer,
    siglip_vocabulary,
    takes_texts_of_siglip,
    vocabulary_in,
)
from phrasebox.stages.model.towers.from_open_clip import Model, build_image_tower
from phrasebox.stages.model.towers.plan import input_of, plan_of, sides_px

_MODEL_TYPES: Final = {"clip": CLIP, "siglip": SIGLIP}  # `model_type` of a `config.json` -> layout
_IMAGES: Final = ("preprocessor_config.json", "processor_config.json")
_SECTIONS: Final = {"embed_dim", "vision_cfg", "text_cfg"}  # keys that open_clip's `model_cfg` must have


def describe(config: ModelConfig) -> ModelDescription:
    """Describe a model, and check before any work that it can be loaded and explained.

    The model is built without memory and compared with the shapes of its weights. The bundled
    models are known to fit. The file of a tag need not be there yet. Paths in the description
    are absolute.

    Raise ConfigError for a model that is unknown or cannot be explained, and WeightsError for
    weights that are missing, damaged or another model's, or where nothing identifies the
    architecture.

    >>> describe(ModelConfig(name="demo")).tower
    'class_token'
    """
    check_model_files(config)
    if config.name in CATALOG:
        folder = find_weights(config.name)
        return _complete(
            _read_model_file(read_json(folder / "model.json"), folder, config.name),
            weights=folder / "model.safetensors",
            layout=OPEN_CLIP,
            calibrations=tuple(sorted(folder.glob("calibration-*.json"))),
            is_bundled=True,
        )
    if config.checkpoint is not None:
        with about("model.checkpoint"):
            checkpoint = read_checkpoint(config.checkpoint.expanduser().absolute())
            settings = _settings_of(checkpoint)
            if settings.dual_encoder is None:
                tensors = convert_to_open_clip(checkpoint.shapes, checkpoint.layout)
                load_into(_build_empty(settings), tensors)
            else:
                module = open_empty(settings.dual_encoder, checkpoint.shapes)
                build_image_tower(module.visual, (0.0,) * 3, (1.0,) * 3)
            return _complete(settings, weights=checkpoint.weights, layout=checkpoint.layout)
    with about("model.name" if config.config is None else "model.config"):
        if config.config is None:
            settings = _settings_of_name(config.name or "", config.pretrained)
        else:
            path = config.config.expanduser().absolute()
            settings = _read_model_file(read_json(path), path.parent, path.stem)
        module = _build_empty(settings)
    if config.weights is None:
        return _complete(settings, pretrained=config.pretrained)
    with about("model.weights"):
        weights = config.weights.expanduser().absolute()
        shapes = read_shapes(weights)
        layout = layout_of(shapes, weights)
        load_into(module, convert_to_open_clip(shapes, layout))
        if layout == OPENAI:
            # All of OpenAI's models were trained with it.
            settings = replace(settings, architecture={**settings.architecture, "quick_gelu": True})
        return _complete(settings, weights=weights, layout=layout)


def _build_empty(settings: ModelDescription) -> Model:
    """Build a model without memory. Raise ConfigError if it cannot be explained."""
    plan_of(settings.architecture)
    with torch.device("meta"):
        module = build_module(settings)
    build_image_tower(module.visual, (0.0,) * 3, (1.0,) * 3)
    return module


def _complete(
    settings: ModelDescription,
    *,
    weights: Path | None = None,
    pretrained: str | None = None,
    **attributes: Any,
) -> ModelDescription:
    """Return the description of a model with these settings, and these attributes of `ModelDescription`."""
    return replace(
        settings,
        tower=plan_of(settings.architecture).kind,
        weights=weights,
        pretrained=pretrained,
        fingerprint=_fingerprint(settings, weights, pretrained),
        **attributes,
    )


def _fingerprint(settings: ModelDescription, weights: Path | None, tag: str | None) -> str:
    """Identify architecture, input, vocabulary and weights.

    Equal strings mean equal heat maps, with one exception: of a tag the name is hashed and not
    the file, which need not be there yet. open_clip can give a tag other weights in a later
    version.
    """
    parts: list[Any] = [settings.architecture, asdict(settings.input)]
    parts += [] if settings.siglip is None else [settings.siglip]
    parts += [] if settings.dual_encoder is None else [settings.dual_encoder]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    if settings.vocabulary is not None:
        digest.update(settings.vocabulary.read_bytes())
        if settings.dual_encoder is not None:
            for path in settings_of_tokenizer(settings.vocabulary.parent):
                digest.update(path.read_bytes())
    if weights is None:
        digest.update(f"{settings.name}/{tag}".encode())
    else:
        for path in weight_files(weights):
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)  # goes on with the same digest
    return f"{settings.name}:{digest.hexdigest()[:32]}"


# --- models by a name or a model file


def _settings_of_name(name: str, tag: str | None) -> ModelDescription:
    architecture = open_clip.get_model_config(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag is not None and tag not in tags:
        raise ConfigError(
            f"open_clip has no tag {tag!r} for {name}; it has {', '.join(tags)}", key="model.pretrained"
        )
    # How images are prepared for the weights of the tag, or for all weights of the name where
    # these agree: SigLIP's mean, for one, is not OpenAI's, and the wrong one raises no error.
    tag_configs = [open_clip.get_pretrained_cfg(name, candidate) for candidate in ([tag] if tag else tags)]
    images = [_images_of(tag_config) for tag_config in tag_configs]
    if tag and tag_configs[0].get("quick_gelu"):
        architecture["quick_gelu"] = True
    preprocess = images[0] if images and images.count(images[0]) == len(images) else {}
    return ModelDescription(name=name, architecture=architecture, input=_input_of(architecture, preprocess))


def _images_of(tag_config: Json) -> Json:
    return {key: tag_config[key] for key in ("mean", "std", "interpolation") if tag_config.get(key)}


def _read_model_file(parsed: Json, folder: Path, name: str, described_by: str = "") -> ModelDescription:
    """Read a model file as open_clip writes it, whose paths start in `folder`. Raise ConfigError, WeightsError."""
    architecture = parsed.get("model_cfg", parsed)
    if not isinstance(architecture, dict) or not architecture.keys() >= _SECTIONS:
        raise ConfigError("the model file lacks embed_dim, vision_cfg or text_cfg")
    spec = _input_of(architecture, parsed.get("preprocess_cfg") or {})
    text = architecture["text_cfg"]
    vocabulary = named_vocabulary(folder, text)
    if described_by and takes_texts_of_siglip(text):
        vocabulary = siglip_vocabulary(folder)
    return ModelDescription(
        name=name, architecture=architecture, input=spec, vocabulary=vocabulary, described_by=described_by
    )


def _input_of(architecture: Json, preprocess: Any) -> InputSpec:
    """Return the input of open_clip's `model_cfg` and `preprocess_cfg`."""
    vision = architecture["vision_cfg"]
    if not all(isinstance(part, dict) for part in (vision, architecture["text_cfg"], preprocess)):
        raise ConfigError("vision_cfg, text_cfg and preprocess_cfg must hold keys")
    return input_of(preprocess, *sides_px(vision))


# --- checkpoints


def _settings_of(checkpoint: Checkpoint) -> ModelDescription:
    """Read the files beside the weights, the most telling first."""
    if checkpoint.layout == OPEN_CLIP and checkpoint.open_clip_config:
        return _read_model_file(
            checkpoint.open_clip_config, checkpoint.folder, checkpoint.name, described_by=OPEN_CLIP_CONFIG
        )
    if checkpoint.layout == OPEN_CLIP and checkpoint.params:
        return _read_params(checkpoint)
    if checkpoint.transformers_config:
        return _read_transformers_config(checkpoint)
    raise undescribed(checkpoint.weights)


def _read_params(checkpoint: Checkpoint) -> ModelDescription:
    params = checkpoint.params
    name = str(params["model"]).replace("/", "-")
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
        architecture |= options if params.get(flag) else {}
    if context := params.get("force_context_length"):
        architecture["text_cfg"]["context_length"] = context
    if size := params.get("force_image_size"):
        is_square = isinstance(size, list) and len({*size}) == 1
        architecture["vision_cfg"]["image_size"] = size[0] if is_square else size
    # The trainer takes mean, deviation and interpolation from the tag that it starts from; its
    # arguments override them.
    preprocess = _images_of(open_clip.get_pretrained_cfg(name, str(params.get("pretrained"))))
    preprocess |= {key: params[f"image_{key}"] for key in ("mean", "std") if params.get(f"image_{key}")}
    if params.get("image_interpolation") in RESAMPLE.values():
        preprocess["interpolation"] = params["image_interpolation"]
    return ModelDescription(
        name=checkpoint.name,
        architecture=architecture,
        input=_input_of(architecture, preprocess),
        described_by=f"params.txt, which names {name}",
    )


def _read_dual_encoder(checkpoint: Checkpoint, kind: DualEncoderKind) -> ModelDescription:
    images, described_by = _images_beside(checkpoint)
    vocabulary = vocabulary_in(checkpoint.folder)
    settings = plain_settings(checkpoint.transformers_config)
    architecture = architecture_of_dual_encoder(settings)
    return ModelDescription(
        name=checkpoint.name,
        architecture=architecture,
        dual_encoder=settings,
        input=_input_of(architecture, preprocess_of(images, kind.images)),
        vocabulary=vocabulary,
        described_by=", ".join([*described_by, vocabulary.name]),
    )


def _read_transformers_config(checkpoint: Checkpoint) -> ModelDescription:
    kind = kind_of(checkpoint.transformers_config)
    if kind is not None and checkpoint.layout == kind.layout:
        return _read_dual_encoder(checkpoint, kind)
    model_type = checkpoint.transformers_config.get("model_type")
    layout = _MODEL_TYPES.get(str(model_type))
    # The same sizes, whoever's names the tensors have.
    if layout is None or (
        layout != checkpoint.layout and not (checkpoint.layout == OPEN_CLIP and layout == CLIP)
    ):
        raise WeightsError(
            f"its config.json says {model_type!r}, and its tensors are those of {checkpoint.layout}"
        )
    images, described_by = _images_beside(checkpoint)
    siglip = None
    vocabulary = None
    if layout == SIGLIP:
        architecture, siglip = architecture_of_siglip(checkpoint.transformers_config)
        vocabulary = siglip_vocabulary(checkpoint.folder)
        if vocabulary is None:
            raise WeightsError(
                f"no tokenizer.json or spiece.model in {checkpoint.folder}: save the model's tokenizer there too"
            )
        described_by.append(vocabulary.name)
        architecture["text_cfg"]["tokenizer_kwargs"] = {"clean": cleaning(vocabulary)}
    else:
        architecture = architecture_of_clip(checkpoint.transformers_config)
        check_vocabulary(checkpoint.folder, architecture["text_cfg"]["vocab_size"])
    return ModelDescription(
        name=checkpoint.name,
        architecture=architecture,
        siglip=siglip,
        input=_input_of(architecture, preprocess_of(images, SIGLIP_IMAGES if layout == SIGLIP else {})),
        vocabulary=vocabulary,
        described_by=", ".join(described_by),
    )


def _images_beside(checkpoint: Checkpoint) -> tuple[Json, list[str]]:
    """Return what a processor of transformers does with images, and the files that describe the model so far."""
    preprocessor, processor = (read_json(checkpoint.folder / name) for name in _IMAGES)
    images = preprocessor.get("image_processor", preprocessor) or processor.get("image_processor", {})
    return images, [TRANSFORMERS_CONFIG, *([_IMAGES[0 if preprocessor else 1]] if images else [])]
