"""The calibration for a run: what it was made with is compared with the run's model and settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from phrasebox.pipeline.config.run_config import differences
from phrasebox.pipeline.run.calibration_cache import cached_calibrations
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.model.catalog import WEIGHTS_ROOT
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.scores.presence import Presence
from phrasebox.stages.scores.score import Calibration, read_calibration
from phrasebox.stages.sources.source import HEAT_MAPS, RegionSourceConfig

if TYPE_CHECKING:
    from phrasebox.stages.model.config import ModelDescription

GENERIC_FILE: Final = WEIGHTS_ROOT / "generic" / "calibration.json"
"""The calibration that `regions.calibration: generic` names."""

_AFTER_THE_FIT: Final = {"calibration", "absent_share", "min_presence"}
"""Settings of regions that a calibration does not depend on."""


def calibration_basis(
    explain: ExplainerConfig, regions: RegionsConfig, model_fingerprint: str, segmenter: str | None
) -> Json:
    """Return the settings and models that a calibration is made with, and holds for; plain values."""
    basis = presence_basis(explain, model_fingerprint) | generic_basis(regions)
    if regions.heat_exponent != 1.0:  # older calibrations do not name it
        basis["regions"]["exponent"] = regions.exponent
    return basis if segmenter is None else basis | {"segmenter": segmenter}


def generic_basis(regions: RegionsConfig) -> Json:
    """Return the same for a calibration of the maps of any model, whatever the exponent that makes them alike."""
    unused = _AFTER_THE_FIT | {"exponent"} | ({"threshold"} if regions.rule != "fixed" else set())
    return _plain(
        {"regions": {key: value for key, value in regions.row_settings().items() if key not in unused}}
    )


def presence_basis(explain: ExplainerConfig, model_fingerprint: str) -> Json:
    """Return the same for a calibration of presence alone, which does not depend on how maps are cut."""
    return _plain({"model": model_fingerprint, "explain": explain.map_settings()})


def source_basis(source: RegionSourceConfig, model_fingerprint: str) -> Json:
    """Return the same for a calibration of regions from another source than heat maps."""
    return _plain({"model": model_fingerprint, "source": source.score_settings()})


def _plain(basis: Json) -> Json:
    """Return a basis as JSON gives it back."""
    plain: Json = json.loads(json.dumps(basis))
    return plain


def presence_in(calibration: Calibration | None) -> Presence | None:
    """Return the part of a calibration of heat maps on presence, if it has one."""
    presence = None if calibration is None else calibration.presence
    return presence if isinstance(presence, Presence) else None


def find_calibration(
    model: ModelDescription | None,
    explain: ExplainerConfig,
    regions: RegionsConfig,
    segmenter: str | None,
) -> Calibration | None:
    """Return the calibration that `regions.calibration` names; None where there is none.

    A calibration without a cut fits the rule `fitted`, too, and one of any exponent fits `auto`, which takes it.

    Args:
        model: The model, with its own calibrations; None for a model in memory, which no
            calibration is for.
        explain: The explainer's settings, fitted to the model's tower.
        regions: The settings of regions.
        segmenter: What identifies the segmenter of the outlines.

    Raises:
        ConfigError: The named calibration cannot be read, or was made with other settings.
    """
    choice = regions.calibration
    if model is None or choice == "none" or find_generic_calibration(regions) is not None:
        return None
    bases = [
        calibration_basis(explain, settings, model.fingerprint, segmenter)
        for settings in (regions, regions.with_fallback_cut())
    ]
    if choice == "auto":
        # The user's own come first: they were made for photographs that the user chose.
        paths = [*cached_calibrations(model.fingerprint), *model.calibrations]
        candidates = [read_calibration(path) for path in paths]
        return next(
            (
                candidate
                for basis in bases
                for candidate in candidates
                if candidate.made_with == _with_exponent(basis, regions, candidate)
            ),
            None,
        )
    calibration = read_calibration(path := Path(choice))
    if not calibration.of_regions:
        bases = [presence_basis(explain, model.fingerprint)]
    else:
        bases = [_with_exponent(basis, regions, calibration) for basis in bases]
    _check_basis(calibration, path, bases)
    return calibration


def find_generic_calibration(regions: RegionsConfig) -> Calibration | None:
    """Return the calibration of other models that `regions.calibration` names; None if it names none.

    Raise ConfigError if it cannot be read, or was made with other settings of regions.
    """
    choice = regions.calibration
    if choice in ("auto", "none"):
        return None
    path = GENERIC_FILE if choice == "generic" else Path(choice)
    if choice == "generic" and not path.is_file():
        raise ConfigError(
            "the generic calibration is in phrasebox's repository and not in its package: name the file of a "
            "checkout, stages/model/weights/generic/calibration.json",
            key="regions.calibration",
        )
    if not path.is_file():
        return None  # it names none of other models, and `find_calibration` says that it is missing
    calibration = read_calibration(path)
    if not calibration.is_generic:
        return None
    _check_basis(calibration, path, [generic_basis(regions)])
    return calibration


def _with_exponent(basis: Json, regions: RegionsConfig, calibration: Calibration) -> Json:
    """Return the basis of a run, with the exponent of a calibration where the settings leave it open."""
    if calibration.exponent == 1.0:
        return basis
    exponent = calibration.exponent if regions.exponent == "auto" else regions.exponent
    return {**basis, "regions": {**basis["regions"], "exponent": exponent}}


def find_source_calibration(
    source: RegionSourceConfig, regions: RegionsConfig, model_fingerprint: str
) -> Calibration | None:
    """Return the calibration that `regions.calibration` names for the regions of a source; None if it names no file.

    Raise ConfigError as `find_calibration`.
    """
    if regions.calibration in ("auto", "none"):
        return None
    calibration = read_calibration(path := Path(regions.calibration))
    _check_basis(calibration, path, [source_basis(source, model_fingerprint)])
    return calibration


def _check_basis(calibration: Calibration, path: Path, bases: Sequence[Json]) -> None:
    """Raise ConfigError, which names the file, if a calibration was made with something else than each of the bases."""
    fitted_kind, kind = (_kind_of(basis) for basis in (calibration.made_with, bases[0]))
    if fitted_kind != kind:
        raise ConfigError(
            f"{path} was fitted to regions of source.kind={fitted_kind}, and this run has {kind}",
            key="regions.calibration",
        )
    differing = min((differences(calibration.made_with, basis) for basis in bases), key=len)
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        raise ConfigError(f"{path} was made with other settings:\n{listed}", key="regions.calibration")


def _kind_of(basis: Json) -> str:
    """Return the `source.kind` of a basis."""
    source = basis.get("source")
    return str(source.get("kind")) if isinstance(source, dict) else HEAT_MAPS
