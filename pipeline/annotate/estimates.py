"""What a run estimates from its first images, fitted once for an annotator, and kept in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel, ValidationError

from phrasebox.pipeline import __version__
from phrasebox.pipeline.config.paths import write_file
from phrasebox.pipeline.config.run_config import differences
from phrasebox.pipeline.output.decisions import Decisions
from phrasebox.stages.contract.errors import ConfigError, one_line
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.json_files import first_problem
from phrasebox.stages.scores.score import Calibration, calibration_of

KEY: Final = "estimates"  # the parameter that messages are about

MOST_BYTES: Final = 64 * 1024 * 1024  # of a file


class EstimatesFile(BaseModel, extra="forbid"):
    """The content of a file of estimates."""

    phrasebox_version: str
    model_fingerprint: str
    settings: dict[str, Any]
    decisions: dict[str, Any]
    presence: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """Share of absent phrases, presence, power of the heat and comparison with a calibration, of some images.

    They hold for one model with the same settings, and for images and captions like these.

    Attributes:
        model_fingerprint: The model.
        settings: The settings, see `AnnotatorConfig.settings`.
        decisions: What a run of these images would decide.
        presence: The calibration of presence that was fitted to them, or brought to them, as JSON; None if none was.
        notes: What a run would say of it, in sentences.
    """

    model_fingerprint: str
    settings: Json
    decisions: Decisions
    presence: str | None
    notes: tuple[str, ...]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file of some kilobytes. Raise ConfigError if that fails."""
        content = EstimatesFile(
            phrasebox_version=__version__,
            model_fingerprint=self.model_fingerprint,
            settings=self.settings,
            decisions=self.decisions.to_json(),
            presence=self.presence,
            notes=self.notes,
        )
        write_file(KEY, Path(path), content.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read such a file. Raise ConfigError if it cannot be read, or is none."""
        try:
            with Path(path).open("rb") as file:
                content = EstimatesFile.model_validate_json(file.read(MOST_BYTES))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}", key=KEY) from error
        except ValueError as error:
            problem = first_problem(error) if isinstance(error, ValidationError) else one_line(error)
            raise ConfigError(
                f"{path} holds no estimates, Annotator.fit makes them: {problem}", key=KEY
            ) from error
        if _minor(content.phrasebox_version) != _minor(__version__):
            raise ConfigError(
                f"{path} was made by phrasebox {content.phrasebox_version}, this is {__version__}: fit again",
                key=KEY,
            )
        estimates = cls(
            model_fingerprint=content.model_fingerprint,
            settings=content.settings,
            decisions=Decisions.stored_in(content.decisions),
            presence=content.presence,
            notes=content.notes,
        )
        digest = None if content.presence is None else sha256(content.presence.encode()).hexdigest()
        if digest != estimates.decisions.presence_digest:
            raise ConfigError(f"{path} was changed since Annotator.fit wrote it: fit again", key=KEY)
        return estimates

    @property
    def calibration(self) -> Calibration | None:
        """The calibration in `presence`."""
        return None if self.presence is None else calibration_of(self.presence, KEY)

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError if they were made with other settings."""
        plain: Json = json.loads(json.dumps(settings))
        if changes := differences(self.settings, plain):
            raise ConfigError(
                f"they were made with other settings, fit again: {'; '.join(changes)}", key=KEY
            )

    def check_model(self, fingerprint: str) -> None:
        """Raise ConfigError if they were made with another model."""
        if fingerprint != self.model_fingerprint:
            raise ConfigError("they were made with another model, fit again", key=KEY)


def _minor(version: str) -> str:
    return version.rpartition(".")[0]
