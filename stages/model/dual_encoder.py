"""Dual encoders of `transformers`, in parts as open_clip's models have them; none of their code is downloaded.

transformers reads the weights, whose tensors have had other names in some of its versions, and
computes the embeddings of texts. The image side becomes a tower of ours, `towers/from_transformers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor, nn

from phrasebox.stages.contract.errors import ConfigError, WeightsError, one_line, with_type
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.checkpoints.dual_encoders import DualEncoderKind, kind_of, plain_settings
from phrasebox.stages.model.checkpoints.state import State
from phrasebox.stages.model.config import TowerKind
from phrasebox.stages.model.towers.from_transformers import ImagePart

NO_TOKEN: Final = -1  # in the place of tokens that fill a text up and are not looked at


class DualEncoder(nn.Module):
    """A dual encoder of transformers as a model of open_clip: `visual`, `encode_text`, `logit_scale`, `logit_bias`."""

    def __init__(self, model: Any, kind: DualEncoderKind) -> None:
        super().__init__()
        config = model.config
        self.counts_padding = kind.counts_padding
        self.padding = int(config.text_config.pad_token_id or 0)
        self.visual = ImagePart(
            model.vision_model, getattr(model, "visual_projection", None), image_size_of(config)
        )
        self.text_model = model.text_model
        self.text_projection = getattr(model, "text_projection", None)
        if hasattr(model, "temperature"):
            self.logit_scale = nn.Parameter(-model.temperature.detach().log(), requires_grad=False)
        else:
            self.logit_scale = model.logit_scale
        self.logit_bias: nn.Parameter | None = getattr(model, "logit_bias", None)

    @property
    def texts(self) -> MaskedTexts | None:
        """The text tower for texts that are cut off; None if tokens behind the end count in the embedding."""
        return None if self.counts_padding else MaskedTexts(self)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens int64 (B, T), `NO_TOKEN` behind the end of a text -> embeddings (B, E), not normalised."""
        is_token = tokens != NO_TOKEN
        is_token[:, 0] = True  # an attention that sees nothing has no numbers
        mask = {} if self.counts_padding else {"attention_mask": is_token.long()}
        output = self.text_model(input_ids=tokens.where(tokens != NO_TOKEN, self.padding), **mask)
        pooled = output.pooler_output
        embedding: Tensor = output.last_hidden_state[:, 0] if pooled is None else pooled
        return embedding if self.text_projection is None else self.text_projection(embedding)


@dataclass(frozen=True, slots=True)
class MaskedTexts:
    """The texts of a dual encoder in which tokens behind the end of a text are not looked at, and may be cut off."""

    module: DualEncoder

    def ends_of(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens (B, T) -> the place of the last token of each text, int64 (B,)."""
        return (tokens != NO_TOKEN).sum(dim=-1).clamp(min=1) - 1

    def encode(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens (B, T') -> embeddings (B, E), not normalised."""
        return self.module.encode_text(tokens)


def architecture_of_dual_encoder(settings: Json) -> Json:
    """Return what `plan_of` and tokenizers need of open_clip's `model_cfg`, from a `config.json`.

    Raise ConfigError for odd values, or without a transformers that knows the model.
    """
    kind = _kind(settings)
    config = _config(settings, kind)
    text = config.text_config
    positions = int(text.max_position_embeddings)
    if kind.skips_positions:
        positions -= int(text.pad_token_id) + 1
    architecture: Json = {
        "embed_dim": _embed_dim(config),
        "vision_cfg": {
            "image_size": image_size_of(config),
            "patch_size": config.vision_config.patch_size,
            "kind": _tower_kind(config.vision_config),
        },
        "text_cfg": {
            "context_length": min(kind.most_tokens or positions, positions),
            "vocab_size": int(text.vocab_size),
            "counts_padding": kind.counts_padding,
            "lower_case": kind.lower_case,
        },
    }
    if kind.needs_end:
        architecture["text_cfg"]["end_token"] = text.eos_token_id
    return architecture


def image_size_of(config: Any) -> int:
    """Return the side of the square images of a config of transformers, in px."""
    vision = config.vision_config
    if hasattr(vision, "num_patches"):  # of any aspect ratio: the square of the positions that it has
        return int(int(vision.num_patches) ** 0.5) * int(vision.patch_size)
    return int(vision.image_size)


def open_dual_encoder(settings: Json, state: State) -> DualEncoder:
    """Build the model of a `config.json` with the tensors of a checkpoint, float32, in evaluation mode.

    Raise ConfigError as `architecture_of_dual_encoder`, WeightsError if the tensors are those of
    another model.
    """
    kind = _kind(settings)
    config = _config(settings, kind)
    with _quiet_library() as library:
        try:
            model, loading = getattr(library, f"{kind.classes}Model").from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,  # the error below lists them
                output_loading_info=True,
                trust_remote_code=False,
            )
        except Exception as error:  # of transformers, for tensors that it cannot take apart
            raise WeightsError(f"the weights do not fit the architecture: {with_type(error)}") from error
    faults = [
        f"{len(names)} tensors {fault}, such as {min(names)}"
        for key, fault in _FAULTS.items()
        if (names := [_name_of(entry) for entry in loading[key] if "position_ids" not in _name_of(entry)])
    ]
    if faults:
        raise WeightsError(f"the weights do not fit the architecture: {'; '.join(faults)}")
    return DualEncoder(model, kind).eval()


def _name_of(entry: Any) -> str:
    """Return the name of a tensor in a report of transformers, which has both sizes beside it where they differ."""
    return str(entry if isinstance(entry, str) else entry[0])


def open_empty(settings: Json, shapes: State) -> DualEncoder:
    """Build the model of a `config.json` without numbers, and compare it with the shapes of a checkpoint.

    Raise as `open_dual_encoder`.
    """
    # Tensors of one number take no memory. transformers makes numbers of tensors without any.
    state = {name: torch.zeros(()).expand(shape.shape) for name, shape in shapes.items()}
    return open_dual_encoder(settings, state).to("meta")


_FAULTS: Final = {
    "missing_keys": "are missing",
    "unexpected_keys": "are not the model's",
    "mismatched_keys": "have another size",
}
"""Kind of fault in a report of transformers -> the same for people."""


def _kind(settings: Json) -> DualEncoderKind:
    kind = kind_of(settings)
    if kind is None:
        raise ConfigError(f"{settings.get('model_type')!r} is no dual encoder that is known")
    return kind


def _config(settings: Json, kind: DualEncoderKind) -> Any:
    if find_spec("transformers") is None:
        raise ConfigError(f"a {kind.classes} requires transformers: pip install -e '.[siglip]'")
    with _quiet_library() as library:
        config_class = getattr(library, f"{kind.classes}Config", None)
        if config_class is None:
            raise ConfigError(
                f"transformers {library.__version__} has no {kind.classes}: pip install -U 'transformers>=5,<6'"
            )
        try:
            config = config_class.from_dict(plain_settings(settings))
            _check_numbers(config)
        except Exception as error:  # of transformers, which checks values with several libraries
            raise ConfigError(f"config.json: {one_line(error)}") from error
    return config


def _check_numbers(config: Any) -> None:
    vision = config.vision_config
    for name in ("patch_size", "num_patches" if hasattr(vision, "num_patches") else "image_size"):
        value = getattr(vision, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value}: only squares of whole pixels are supported")
    for part in (vision, config.text_config):
        if part.hidden_size % part.num_attention_heads:
            raise ValueError(f"{part.num_attention_heads} heads do not divide {part.hidden_size} numbers")


def _embed_dim(config: Any) -> int:
    """Return the numbers of an embedding. Raise ConfigError if texts and images have different ones."""
    if hasattr(config, "projection_dim"):
        return int(config.projection_dim)
    text = config.text_config
    width = int(getattr(text, "projection_size", text.hidden_size))
    if width != config.vision_config.hidden_size:
        raise ConfigError(
            f"texts have embeddings of {width} numbers and images of {config.vision_config.hidden_size}"
        )
    return width


def _tower_kind(vision: Any) -> TowerKind:
    if hasattr(vision, "num_patches"):
        return "latent_pool"
    return "attention_pool" if getattr(vision, "use_swiglu_ffn", False) else "class_token"


@contextmanager
def _quiet_library() -> Iterator[Any]:
    """Import transformers without the lines that it prints about models; our errors say what matters."""
    import transformers  # noqa: PLC0415 - it takes seconds, which models of open_clip do not wait for

    library: Any = transformers  # which is partly typed
    verbosity = library.utils.logging.get_verbosity()
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()
    try:
        yield library
    finally:
        library.utils.logging.set_verbosity(verbosity)
