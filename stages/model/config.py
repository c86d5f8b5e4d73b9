"""The setting of a CLIP model, and its description. The driver reads this too, so it does not import torch."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from phrasebox.stages.contract.errors import ConfigError, WeightsError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.checkpoints.files import check_described
from phrasebox.stages.model.families import ModelFamily, family_of, family_of_folder
from phrasebox.stages.model.languages import names_english_only

OWN_MODELS: Final = (
    "demo",
    "photo",
)  # with their own weights, the keys of `phrasebox.stages.model.catalog.CATALOG`
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["auto"] | Precision
AUTO: Final = "auto"  # the precision of a model until the device that computes it is known
NO_MODEL: Final = "none"  # in cards and manifests where no model was loaded

TowerKind = Literal["class_token", "attention_pool", "latent_pool", "average_pool"]
"""Ways to make one embedding of an image tower's tokens, which decide what can be explained."""

TOWER_WORDS: Final[dict[TowerKind, str]] = {
    "class_token": "transformer blocks with a class token",
    "attention_pool": "one attention layer at its end, asked by the mean of the tokens or by a class token",
    "latent_pool": "one attention layer at its end, asked by a learned query",
    "average_pool": "a trunk whose tokens are averaged",
}
"""Kind -> what such a tower has."""

_WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")

_NO_MODEL_GIVEN: Final = """no model is given. It is one of
  photo                         a small model for photographs, in the repository of phrasebox
  ViT-B-16/laion2b_s34b_b88k    a model of open_clip and its tag of weights, which open_clip downloads
  my-clip/                      a checkpoint of your own, a folder or a file
`phrasebox models` lists what fits; `demo` knows synthetic scenes only."""


@contextmanager
def about(key: str) -> Iterator[None]:
    """Give the errors of the block that name no key of the configuration this one."""
    try:
        yield
    except (ConfigError, WeightsError) as error:
        error.key = error.key or key
        raise


def absolute_model(name: str) -> str:
    """Return the name of a model; of a path the absolute one, since workers have another current folder."""
    return str(Path(name).expanduser().absolute()) if _is_path(name) else name


def _is_path(name: str) -> bool:
    """Return whether a name is the path of a checkpoint: it looks like one, or exists."""
    if name in OWN_MODELS:
        return False
    looks_like_path = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1
    return looks_like_path or name.endswith(_WEIGHT_SUFFIXES) or Path(name).exists()


class ModelConfig(BaseModel):
    """The model, by name or by files, in one of five forms.

    `{name: demo}` brings its weights. Those of `{name: ViT-B-16, pretrained: TAG}` are
    downloaded, and those of `{name: ViT-B-16, weights: FILE}` are a local checkpoint.
    `{checkpoint: PATH}` describes itself, and `{config: model.json, weights: FILE}` is an
    architecture of your own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: str | None = Field(
        default=None,
        description="`demo`, `photo`, or a name of `open_clip.list_models()`. NAME/TAG sets "
        "`pretrained` too, and the path of a file or folder sets `checkpoint`. A run that loads a "
        "model requires one of these.",
    )
    pretrained: str | None = Field(
        default=None, description="open_clip's tag of pretrained weights for `name`."
    )
    checkpoint: Path | None = Field(
        default=None,
        description="A folder as transformers' CLIPModel, SiglipModel and other dual encoders, or "
        "open_clip's push_to_hf_hub write it, or a file: one of these, OpenAI's, or one of "
        "open_clip's trainer. Its tensors and the files beside it identify it.",
    )
    weights: Path | None = Field(
        default=None, description="A checkpoint: .safetensors, or a torch file read with weights_only=True."
    )
    config: Path | None = Field(
        default=None,
        description="A model JSON as open_clip writes it (with or without `model_cfg` around it).",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="`auto` takes the GPU that the worker was given, else the CPU."
    )
    precision: PrecisionChoice = Field(
        default=AUTO,
        description="Precision of the image trunk, and in bf16 of the products of wide text towers; gradients and heat "
        "maps are always computed in fp32. `auto` is bf16 where the device has instructions for it (GPUs "
        "from Ampere on, CPUs with AMX or AVX512-BF16), and else fp32. The workers of a run "
        "decide it once; it is stored with the rows, and all that join or resume the run obey. "
        "Without such instructions a CPU takes some 40 times longer in 16 bits than in fp32, and "
        "a warning says so.",
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Images of one forward pass. None: 8 on a CPU, 64 on a GPU, 1 with "
        "explain.image_size=keep. A worker whose GPU memory is full halves the batch and "
        "continues.",
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads of one worker. None: torch's default."
    )

    @property
    def label(self) -> str:
        """The model for people: `demo`, a name and its tag, or the name of a folder or file."""
        if self.name is not None:
            return self.name if self.pretrained is None else f"{self.name}/{self.pretrained}"
        return str(self.checkpoint or self.config or NO_MODEL)

    @model_validator(mode="before")
    @classmethod
    def _name_and_tag(cls, values: Any) -> Any:
        """Split `name: ViT-B-16/laion2b_s34b_b88k` into name and tag, and read `name: models/mine` as a checkpoint."""
        name = values.get("name") if isinstance(values, dict) else None
        if not isinstance(name, str) or any(
            values.get(key) is not None for key in ("pretrained", "weights", "config")
        ):
            return values
        if _is_path(name):
            return {**values, "name": None, "checkpoint": name}
        if "/" not in name or ":" in name:
            return values
        name, _, tag = name.partition("/")
        return {**values, "name": name, "pretrained": tag}

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        sources = [key for key in ("name", "config", "checkpoint") if getattr(self, key) is not None]
        weights = [key for key in ("pretrained", "weights") if getattr(self, key) is not None]
        has_weights = self.checkpoint is not None or self.name in OWN_MODELS
        if len(sources) > 1 or len(weights) > 1:
            raise ValueError(f"give one of {' and '.join(sources if len(sources) > 1 else weights)}")
        if weights and has_weights:
            raise ValueError(
                f"{self.label} brings its own weights: leave out {weights[0]}, or set it to null"
            )
        if weights and not sources:
            raise ValueError(f"{weights[0]} needs a name or a config beside it")
        if sources and not weights and not has_weights:
            raise ValueError(
                f"{self.config} needs weights: set model.weights=FILE"
                if self.name is None
                else _explain_missing_weights(self.name)
            )
        return self


class SegmenterConfig(BaseModel):
    """The segmenter of `regions.refine: sam`: SAM, or one of its relatives. It computes on `model.device`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, AfterValidator(absolute_model)] | None = Field(
        default=None,
        description="A folder as transformers writes it, with safetensors, or such a repository of "
        "the Hugging Face hub, as facebook/sam-vit-base: SAM, HQ-SAM, SAM 2 and 2.1, EdgeTAM or "
        "SAM 3's tracker.",
    )
    precision: Precision = Field(default="fp32", description="Precision of the image encoder.")
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Images that are encoded together. None: 1 on a CPU, 8 on a GPU.",
    )


def check_model_files(config: ModelConfig) -> None:
    """Check that a model is named and its files exist, without the libraries that take seconds to import.

    Raise ConfigError if no model is named or open_clip has none of that name, WeightsError if a
    file is missing, or if nothing describes a checkpoint.
    """
    if config.label == NO_MODEL:
        raise ConfigError(_NO_MODEL_GIVEN, key="model.name")
    # Also `hf-hub:` and `local-dir:`, under which open_clip hands on any tokenizer option, are
    # no names of the list.
    if config.name is not None and config.name not in (*OWN_MODELS, *open_clip_names()):
        unknown = unknown_name(config.name)
        if config.pretrained is not None:
            unknown += (
                f" {config.label} is no file or folder here; a repository of Hugging Face is downloaded first: "
                f"hf download {config.label} --local-dir FOLDER, and then FOLDER is the model"
            )
        raise ConfigError(unknown, key="model.name")
    for key in ("checkpoint", "config", "weights"):
        path = getattr(config, key)
        if path is not None and not path.expanduser().exists():
            raise WeightsError(f"no file or folder {path}", key=f"model.{key}")
    if config.checkpoint is not None:
        with about("model.checkpoint"):
            check_described(config.checkpoint)


def open_clip_names() -> list[str]:
    """Return `open_clip.list_models()`, from the files that it lists where it is not imported, which takes seconds."""
    if "open_clip" in sys.modules:  # programs can add models to its list
        return list(sys.modules["open_clip"].list_models())
    spec = find_spec("open_clip")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return sorted(file.stem for folder in folders for file in Path(folder, "model_configs").glob("*.json"))


def unknown_name(name: str) -> str:
    """Return a message about a name that no model has, with the nearest names, whatever their case."""
    names = {model.casefold(): model for model in (*OWN_MODELS, *open_clip_names())}
    matches = difflib.get_close_matches(name.casefold(), names, n=3, cutoff=0.7)
    hint = f"; did you mean {' or '.join(names[match] for match in matches)}?" if matches else "."
    return f"there is no model {name!r} (`phrasebox models` lists them){hint}"


def _explain_missing_weights(name: str) -> str:
    if name not in open_clip_names():
        return (
            f"{unknown_name(name)} For open_clip's weights write --model NAME/TAG, for your own the path of a file or "
            "folder that is there"
        )
    import open_clip  # noqa: PLC0415 - it takes seconds to import, which only a name without weights costs

    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:4])
    return (
        f"{name} needs weights: set model.pretrained=TAG (open_clip downloads it: {tags}, ...) or model.weights=FILE; "
        "or name a file or folder that is there"
    )


@dataclass(frozen=True, slots=True, kw_only=True)  # of pydantic, which checks the values
class InputSpec:
    """The images that an image tower takes.

    Attributes:
        size_px: Side of the square images that it was trained on.
        patch_px: Distance of neighbouring tokens: the side of a transformer's patch.
        mean, std: Mean and standard deviation of the RGB channels in 0-1.
        interpolation: Filter that resizes images.
    """

    size_px: int
    patch_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """Everything about a model but the numbers in its weights, see `describe`.

    Attributes:
        name: Name for people.
        architecture: open_clip's model configuration.
        siglip: Arguments of timm's `VisionTransformer`, and `norm_eps`, for the image tower of
            a SigLIP of any size, which open_clip cannot build. None for other models.
        dual_encoder: The `config.json` of a dual encoder that transformers builds, see
            `checkpoints.dual_encoders`. None for other models.
        input: The images that the model takes.
        vocabulary: A vocabulary file that the model brings, absolute; None for the tokenizer of
            `architecture`.
        described_by: Files that describe a checkpoint, for people; "" for a model with a
            configuration.
        tower: Kind of the image tower.
        weights: A file, or the index of several, absolute; None if open_clip downloads it.
        pretrained: open_clip's tag of the weights; None for a file.
        layout: Layout of the weights, see `layouts`; "" for a tag.
        is_bundled: Whether phrasebox brings the model. Another machine may have its files
            elsewhere.
        calibrations: Calibrations of scores that the model brings.
        fingerprint: Hash of architecture, input, vocabulary and weights.
    """

    name: str
    architecture: Json
    siglip: Json | None = None
    dual_encoder: Json | None = None
    input: InputSpec
    vocabulary: Path | None = None
    described_by: str = ""
    tower: TowerKind = "class_token"
    weights: Path | None = None
    pretrained: str | None = None
    layout: str = ""
    is_bundled: bool = False
    calibrations: tuple[Path, ...] = ()
    fingerprint: str = ""

    @property
    def family(self) -> ModelFamily | None:
        """The family of the weights, if their tag or the kind of their folder tells it."""
        if self.pretrained is not None:
            return family_of(f"{self.name}/{self.pretrained}")
        return family_of(self.name) if self.is_bundled else family_of_folder(self._model_type)

    @property
    def reads_english_only(self) -> bool:
        """Whether the model was trained on English texts alone: its family says so, or no name speaks against it."""
        if self.family is not None:
            return self.family.reads_english_only
        vocabulary = self._kind_of_vocabulary()
        return names_english_only(
            self.architecture, self.name, self.pretrained, self._model_type, vocabulary
        )

    @property
    def _model_type(self) -> str:
        """`model_type` of a dual encoder; "" for other models."""
        return str((self.dual_encoder or {}).get("model_type") or "")

    def _kind_of_vocabulary(self) -> str:
        """Return the class of the tokenizer beside the model's vocabulary; "" where none is named."""
        if self.vocabulary is None:
            return ""
        try:
            text = (self.vocabulary.parent / "tokenizer_config.json").read_text(encoding="utf-8")
            return str(json.loads(text).get("tokenizer_class") or "")
        except (OSError, ValueError, AttributeError):
            return ""

    @property
    def key(self) -> str:
        """Key of the configuration that names the weights, for errors."""
        return "model.checkpoint" if self.described_by else "model.weights"
