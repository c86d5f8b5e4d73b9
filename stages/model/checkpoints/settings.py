"""Architecture and images of a model in open_clip's words, from the settings of `transformers`."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeVar

from pydantic import BaseModel, PositiveInt, ValidationError, model_validator

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.json_files import first_problem

RESAMPLE: Final = {2: "bilinear", 3: "bicubic"}
"""`resample` of a `preprocessor_config.json`, a number of Pillow's -> interpolation."""

SIGLIP_IMAGES: Final[Json] = {"mean": [0.5] * 3, "std": [0.5] * 3}
"""What a SiglipModel takes without a `preprocessor_config.json`."""

_TANH: Final = {"act_kwargs": {"approximate": "tanh"}}
_ACTIVATIONS: Final[dict[str, Json]] = {
    "quick_gelu": {},
    "gelu": {},
    "gelu_pytorch_tanh": _TANH,
    "gelu_new": _TANH,
}
"""`hidden_act` -> options of open_clip's blocks. QuickGELU is an option of its models."""

_Activation = Literal["quick_gelu", "gelu", "gelu_pytorch_tanh", "gelu_new"]

_EPS: Final = 1e-5  # what open_clip adds to the variance in layer norms by default


class _Blocks(BaseModel):
    """Keys of the transformer blocks of a tower. Defaults here and below are those of `transformers`."""

    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    hidden_act: _Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def mlp_ratio(self) -> float:
        """A ratio for which `int(width * ratio)` is the width inside the MLP, although products are rounded."""
        ratio = self.intermediate_size / self.hidden_size
        is_exact = int(self.hidden_size * ratio) == self.intermediate_size
        return ratio if is_exact else (self.intermediate_size + 0.5) / self.hidden_size

    @property
    def options(self) -> Json:
        """Options of open_clip's blocks."""
        norm = {} if self.layer_norm_eps == _EPS else {"norm_kwargs": {"eps": self.layer_norm_eps}}
        return {"mlp_ratio": self.mlp_ratio, **_ACTIVATIONS[self.hidden_act], **norm}


class _ClipImages(_Blocks):
    image_size: PositiveInt = 224
    patch_size: PositiveInt = 32


class _Texts(_Blocks):
    max_position_embeddings: PositiveInt
    vocab_size: PositiveInt

    @property
    def text_cfg(self) -> Json:
        """open_clip's `text_cfg`."""
        return {
            "context_length": self.max_position_embeddings,
            "vocab_size": self.vocab_size,
            "width": self.hidden_size,
            "heads": self.num_attention_heads,
            "layers": self.num_hidden_layers,
            **self.options,
        }


class _ClipTexts(_Texts):
    hidden_size: PositiveInt = 512
    intermediate_size: PositiveInt = 2048
    num_attention_heads: PositiveInt = 8
    max_position_embeddings: PositiveInt = 77
    vocab_size: PositiveInt = 49408


class _SiglipImages(_Blocks):
    hidden_act: _Activation = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    image_size: PositiveInt = 224
    patch_size: PositiveInt = 16
    vision_use_head: Literal[True] = True


class _SiglipTexts(_Texts):
    hidden_act: _Activation = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    max_position_embeddings: PositiveInt = 64
    vocab_size: PositiveInt = 32000
    projection_size: PositiveInt | None = None


class _Config(BaseModel):
    vision_config: _Blocks
    text_config: _Texts

    @model_validator(mode="before")
    @classmethod
    def _older_keys(cls, values: Json) -> Json:
        """Read the files that transformers wrote before 4.27: there `vision_config_dict` decides all it has."""
        sections = {
            name: values.get(f"{name}_dict") or values.get(name)
            for name in ("vision_config", "text_config")
        }
        return {**values, **{name: section or {} for name, section in sections.items()}}

    @model_validator(mode="after")
    def _one_activation(self) -> _Config:
        if self.vision_config.hidden_act != self.text_config.hidden_act:
            raise ValueError("hidden_act differs between the towers: open_clip has one for both")
        return self


class _ClipConfig(_Config):
    vision_config: _ClipImages
    text_config: _ClipTexts
    projection_dim: PositiveInt = 512


class _SiglipConfig(_Config):
    vision_config: _SiglipImages
    text_config: _SiglipTexts


ConfigT = TypeVar("ConfigT", bound=_Config)


def _parse(config_type: type[ConfigT], settings: Json) -> ConfigT:
    try:
        return config_type.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"config.json: {first_problem(error)}") from error


def architecture_of_clip(settings: Json) -> Json:
    """Return open_clip's `model_cfg` for the `config.json` of a CLIPModel. Raise ConfigError for odd values."""
    config = _parse(_ClipConfig, settings)
    images = config.vision_config
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": images.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": images.image_size,
            "patch_size": images.patch_size,
            "width": images.hidden_size,
            "head_width": images.hidden_size // images.num_attention_heads,
            "layers": images.num_hidden_layers,
            **images.options,
        },
        "text_cfg": config.text_config.text_cfg,
    }


def architecture_of_siglip(settings: Json) -> tuple[Json, Json]:
    """Translate the `config.json` of a SiglipModel.

    Return open_clip's `model_cfg`, and the arguments of the image tower, see
    `ModelDescription.siglip`. Raise ConfigError for odd values, or if texts cannot be compared
    with images.
    """
    config = _parse(_SiglipConfig, settings)
    images = config.vision_config
    text_cfg = config.text_config.text_cfg
    width = config.text_config.projection_size or config.text_config.hidden_size
    if width != images.hidden_size:
        raise ConfigError(f"texts have embeddings of {width} numbers and images of {images.hidden_size}")
    architecture = {
        "embed_dim": width,
        "quick_gelu": images.hidden_act == "quick_gelu",
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": images.image_size,
            "patch_size": images.patch_size,
            "pool_type": "map",
        },
        "text_cfg": {**text_cfg, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    }
    tower = {
        "img_size": images.image_size,
        "patch_size": images.patch_size,
        "embed_dim": images.hidden_size,
        "depth": images.num_hidden_layers,
        "num_heads": images.num_attention_heads,
        "mlp_ratio": images.mlp_ratio,
        "act_layer": "gelu_tanh" if _ACTIVATIONS[images.hidden_act] else images.hidden_act,
        "norm_eps": images.layer_norm_eps,
    }
    return architecture, tower


def preprocess_of(images: Json, defaults: Json) -> Json:
    """Translate the contents of a `preprocessor_config.json` to open_clip's `preprocess_cfg`, without the size.

    `defaults` are those of the model's class in `transformers`, in open_clip's words, for what
    the contents leave out. Raise ConfigError if a value cannot be used.
    """
    factor = images.get("rescale_factor", 1 / 255)
    scales = math.isclose(factor, 1 / 255, rel_tol=1e-3) and images.get("do_rescale") is not False
    if not scales:
        raise ConfigError("preprocessor_config.json: expected images scaled by 1/255")
    channels = {key: images[f"image_{key}"] for key in ("mean", "std") if images.get(f"image_{key}")}
    if images.get("do_normalize") is False:
        channels = {"mean": [0.0] * 3, "std": [1.0] * 3}
    filters = (
        {"interpolation": RESAMPLE.get(images["resample"], "another filter")}
        if "resample" in images
        else {}
    )
    return {**defaults, **channels, **filters}
