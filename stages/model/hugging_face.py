"""Models of `transformers` beside CLIP, in folders or repositories: what identifies them, and safe loading."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch

from phrasebox.stages.contract.errors import ConfigError, WeightsError, with_type
from phrasebox.stages.model.catalog import sha256_of
from phrasebox.stages.model.checkpoints.files import INDEX_SUFFIX
from phrasebox.stages.model.checkpoints.state import read_json, weight_files
from phrasebox.stages.model.device import moving_to_device, pick_device

REPOSITORY: Final = r"[\w.-]+/[\w.-]+"

_PROCESSORS: Final = ("preprocessor_config.json", "processor_config.json")
_SETTINGS: Final = ("config.json", *_PROCESSORS, "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")


class ProcessedModel:
    """A model of transformers with its processor. Passes in `_computing` have its precision."""

    def __init__(self, model: Any, processor: Any, precision: torch.dtype = torch.float32) -> None:
        self._model = model
        self._processor = processor
        self._precision = precision
        self.device: torch.device = model.device

    def _computing(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self._precision, enabled=self._precision != torch.float32)


def identify_model(name: str, kinds: Collection[str], title: str, extra: str) -> str:
    """Check before any work that a model can be loaded, and return the identity of its weights.

    A repository is identified by its name: transformers downloads its files when they are
    needed.

    Args:
        name: An absolute path of a folder, or a repository.
        kinds: The values of `model_type` that are possible.
        title: The models that are possible, for people.
        extra: The extra that brings transformers.

    Raises:
        ConfigError: It is neither a repository nor a folder of such a model, or transformers is
            not installed.
        WeightsError: The weights are missing or pickled.
    """
    if find_spec("transformers") is None:
        raise ConfigError(f"it requires transformers: pip install -e '.[{extra}]'")
    if not Path(name).is_absolute():
        if not re.fullmatch(REPOSITORY, name):
            raise ConfigError(f"expected a folder, or a repository as OWNER/NAME, got {name!r}")
        return name
    settings = [path for path in (Path(name, file) for file in _SETTINGS) if path.is_file()]
    has_processor = any(path.name in _PROCESSORS for path in settings)
    if not has_processor or read_json(Path(name, "config.json")).get("model_type") not in kinds:
        raise ConfigError(
            f"{name} is no folder of transformers with a {_PROCESSORS[0]} and the config.json of {title}"
        )
    for weights in (Path(name, f"model.safetensors{end}") for end in ("", INDEX_SUFFIX)):
        if weights.is_file():
            return "-".join(sha256_of(file)[:16] for file in (*settings, *weight_files(weights)))
    raise WeightsError(
        f"{name} has no model.safetensors; pickles (.bin, .pt) can run code and are not read"
    )


def load_model(name: str, model_class: Any, processor_class: Any, device: str) -> tuple[Any, Any]:
    """Return the model of a folder or repository, in evaluation mode on a device, and its processor.

    Args:
        name: See `identify_model`.
        model_class, processor_class: Classes of transformers with `from_pretrained`.
        device: See `pick_device`.

    Raises:
        WeightsError: Files are missing, damaged, or of another model.
        ResourceError: The device is missing, or full.
    """
    # An extra that takes seconds to import.
    import transformers  # noqa: PLC0415

    library: Any = transformers  # which is partly typed
    library.utils.logging.disable_progress_bar()  # which would run through ours
    safe = {"use_safetensors": True, "trust_remote_code": False}
    try:
        processor = processor_class.from_pretrained(name, trust_remote_code=False)
        model, loading_info = model_class.from_pretrained(
            name, **safe, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers and safetensors raise many kinds
        raise WeightsError(f"cannot load {name}: {with_type(error)}") from error
    if missing := sorted(loading_info["missing_keys"]):
        raise WeightsError(f"{name} lacks {len(missing)} tensors, such as {missing[0]}")
    with moving_to_device(name):
        model.eval().requires_grad_(False).to(pick_device(device))
    return model, processor
