"""What can be known of a model before its weights are read: architecture, input, tokenizer, fingerprint, trust."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from stages.contract.errors import ConfigError, WeightsError, one_line
from stages.shared.model import hub
from stages.shared.model.catalog import CATALOG, is_here, resolve
from stages.shared.model.checkpoints import checkpoint
from stages.shared.model.checkpoints.own_tokenizer import OwnTokenizer, takes_texts_of_siglip
from stages.shared.model.checkpoints.state import weight_files
from stages.shared.model.config import InputSpec, ModelConfig, unknown_name
from stages.shared.model.deferred import open_clip
from stages.shared.model.towers.plan import sides_px

_TOKENIZER_OPTIONS: Final = {"bpe_path": str, "clean": str, "strip_sep_token": bool, "language": str}
"""What a model file may say under `tokenizer_kwargs`, and of which type. open_clip hands everything else on to
`transformers`, where some options run code that is downloaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A model before its weights are read.

    Attributes:
        name: for people.
        architecture: open_clip's model configuration.
        input: what the images look like.
        folder: where relative tokenizer paths start; None for open_clip's own models.
        weights: the checkpoint file; None if open_clip downloads it.
        pretrained: open_clip's tag of the weights; None for a file.
        calibrations: files of calibrations of scores, where the model brings some.
        tokenizer: file of a vocabulary that the checkpoint brings; None for the tokenizer of `architecture`.
        layout: whose checkpoint it is, see `layouts`; "" until the weights file is looked at.
        described_by: what says what the model is, for people; "" where it is the configuration.
    """

    name: str
    architecture: dict[str, Any]
    input: InputSpec
    folder: Path | None
    weights: Path | None
    pretrained: str | None
    calibrations: tuple[Path, ...] = ()
    tokenizer: Path | None = None
    layout: str = ""
    described_by: str = ""

    @property
    def key(self) -> str:
        """The key of the configuration that names the weights, for messages."""
        return checkpoint.KEY if self.described_by else "model.weights"


def describe(config: ModelConfig) -> Description:
    """Look up architecture, input and weights file; nothing heavy is read.

    Raises:
        ConfigError: the name is unknown, or the model file is unusable.
        WeightsError: files are missing or damaged.
    """
    if config.checkpoint is not None:
        return _describe_checkpoint(config.checkpoint.expanduser())
    if config.config is not None:
        return _describe_file(config.config.expanduser(), config.weights)
    if config.name is None:
        raise ConfigError(_NO_MODEL.format(photo=_PHOTO if is_here("photo") else ""))
    name = config.name
    if name in CATALOG:
        files = resolve(name)
        return replace(_describe_file(files.config, files.weights, name=name), calibrations=files.calibrations)
    # Also `hf-hub:` and `local-dir:`, under which open_clip hands on any tokenizer option, are no names of the list.
    if name not in open_clip.list_models():
        told = unknown_name(name)
        if config.pretrained is not None and not told.endswith("?"):  # no name is near
            both = f"{name}/{config.pretrained}"
            told += (
                f" {both} is no file or folder here; a repository of Hugging Face is downloaded first: "
                f"hf download {both} --local-dir FOLDER, and then FOLDER is the model"
            )
        raise ConfigError(f"model.name: {told}")
    architecture = open_clip.get_model_config(name)
    preprocess = _agreed(name)
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
        input=input_spec(architecture, preprocess),
        folder=None,
        weights=_existing(config.weights),
        pretrained=config.pretrained,
    )


_PHOTO: Final = """
  photo                         a small model for photographs, to try phrasebox with"""

_NO_MODEL: Final = """model.name: no model is given. It is one of{photo}
  ViT-B-16/laion2b_s34b_b88k    a model of open_clip and its tag of weights, which open_clip downloads
  my-clip/                      a checkpoint of your own, a folder or a file
`phrasebox models` lists what fits; `demo` knows drawn scenes only."""


def _agreed(name: str) -> dict[str, Any]:
    """How images are prepared for all weights of a name, where they agree: for a checkpoint that does not say it.

    SigLIP's mean, for one, is not OpenAI's, and the wrong one raises no error.
    """
    tags = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    found = [{key: tag[key] for key in ("mean", "std", "interpolation") if tag.get(key)} for tag in tags]
    return found[0] if found and all(each == found[0] for each in found) else {}


def _describe_checkpoint(path: Path) -> Description:
    found = checkpoint.read_checkpoint(path)
    folder = found.weights.parent
    _check_tokenizer(folder, found.architecture["text_cfg"].get("tokenizer_kwargs") or {})
    return Description(
        name=found.name,
        architecture=found.architecture,
        input=input_spec(found.architecture, found.preprocess),
        folder=folder,
        weights=found.weights,
        pretrained=None,
        tokenizer=found.tokenizer,
        layout=found.layout,
        described_by=found.described_by,
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
    spec = input_spec(architecture, parsed.get("preprocess_cfg", {}))
    _check_tokenizer(path, architecture["text_cfg"].get("tokenizer_kwargs") or {})
    return Description(
        name=name or path.stem,
        architecture=architecture,
        input=spec,
        folder=path.parent,
        weights=_existing(weights),
        pretrained=None,
    )


def _check_tokenizer(path: Path, options: Any) -> None:
    """Raise ConfigError for tokenizer options that are not on the list, or have another type."""
    if not isinstance(options, dict):
        raise ConfigError(f"model.config: {path}: tokenizer_kwargs must hold keys")
    if "trust_remote_code" in options:
        raise ConfigError(
            f"model.config: {path} asks for trust_remote_code, which runs code from a repository on Hugging Face: "
            "phrasebox never does that"
        )
    for key, value in options.items():
        wanted = _TOKENIZER_OPTIONS.get(key)
        if wanted is None or not isinstance(value, wanted):
            allowed = ", ".join(f"{name} ({kind.__name__})" for name, kind in _TOKENIZER_OPTIONS.items())
            raise ConfigError(f"model.config: {path}: tokenizer_kwargs may hold {allowed}, not {key}: {value!r}")


def _existing(weights: Path | None) -> Path | None:
    if weights is None:
        return None
    path = weights.expanduser()
    if not path.is_file():
        raise WeightsError(f"model.weights: no file {path}")
    return path


def input_spec(architecture: dict[str, Any], preprocess: dict[str, Any]) -> InputSpec:
    """Read the image tower's input from open_clip's `model_cfg` and `preprocess_cfg`.

    Raises:
        ConfigError: a value makes no sense, or image or patch is not square.
    """
    sides = architecture["vision_cfg"]
    if not all(isinstance(part, dict) for part in (sides, architecture["text_cfg"], preprocess)):
        raise ConfigError("model.config: vision_cfg, text_cfg and preprocess_cfg must hold keys")
    size, stride = sides_px(sides)
    return InputSpec(
        size_px=size,
        patch_px=stride,
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
        for path in weight_files(description.weights, description.key):
            with path.open("rb") as file:
                while piece := file.read(1 << 22):
                    digest.update(piece)
    else:
        digest.update(f"{description.name}/{description.pretrained}".encode())
    return f"{description.name}:{digest.hexdigest()[:32]}"


def load_tokenizer(config: ModelConfig) -> Any:
    """Load the model's tokenizer, texts -> int64 (texts, context), without its weights, which need not be there.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: the vocabulary is missing.
    """
    return tokenizer_of(describe(config.model_copy(update={"weights": None})))


def tokenizer_of(description: Description) -> Any:
    """The tokenizer of a described model. Raises WeightsError if its vocabulary cannot be found."""
    text = description.architecture["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    length = text.get("context_length", 77)
    own, repository = description.tokenizer, siglip_vocabulary(description.architecture)
    if own is None and repository is not None:
        own = hub.fetch_tokenizer(repository)
    if own is not None:
        return OwnTokenizer(own, length, options.get("clean", "canonicalize"))
    named = text.get("hf_tokenizer_name")
    try:
        if description.folder is None:
            return open_clip.get_tokenizer(description.name)
        if named:
            return open_clip.tokenizer.HFTokenizer(
                named,
                context_length=length,
                tokenizer_mode=text.get("tokenizer_mode"),
                trust_remote_code=False,  # without a word transformers would ask at the terminal
                **options,
            )
    except Exception as error:  # of transformers, which reads vocabularies that are not CLIP's
        needs = "" if find_spec("transformers") else ": pip install transformers"
        raise WeightsError(f"could not get the tokenizer {named}{needs} ({one_line(error)})") from error
    vocabulary = _vocabulary(description)
    if vocabulary is not None:
        options["bpe_path"] = str(vocabulary)
    return open_clip.tokenizer.SimpleTokenizer(context_length=length, **options)


def siglip_vocabulary(architecture: dict[str, Any]) -> str | None:
    """The repository of the hub that holds the vocabulary of a SigLIP of open_clip; None for other models."""
    text = architecture["text_cfg"]
    repository = text.get("hf_tokenizer_name") if takes_texts_of_siglip(text) else None
    return None if repository is None else str(repository)


def _vocabulary(description: Description) -> Path | None:
    """File with the tokenizer's merges, if the model brings its own. Raises WeightsError if it is missing."""
    if description.tokenizer is not None:
        return description.tokenizer
    options = description.architecture["text_cfg"].get("tokenizer_kwargs") or {}
    if description.folder is None or "bpe_path" not in options:
        return None
    path = description.folder / str(options["bpe_path"])
    if not path.is_file():
        raise WeightsError(f"model.config: no vocabulary file {path}")
    return path
