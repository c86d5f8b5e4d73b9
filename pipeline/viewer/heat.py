"""Heat maps of samples while somebody looks at them: those in the shards, or computed again as the run did."""

from __future__ import annotations

import shlex
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pipeline.config import RunConfig, stored_config
from pipeline.dataset.folder import Dataset
from pipeline.dataset.origin import LOADED, ImageSource, check_named
from stages.contract.errors import ConfigError, InputError, RowFault
from stages.contract.records import HeatMap, ImageRef, Record, Sample
from stages.contract.schema import HEAT_MAP_FIELDS, IMAGE_FIELD, mapped_record

KEPT_SAMPLES: Final = 64
"""Samples whose maps are kept: a few kB each."""


class HeatMaps:
    """The heat maps of rows, one sample at a time.

    They are the dataset's if it stores them, which takes neither images nor a model. Otherwise, or if there are
    settings, they are computed with the dataset's own configuration and model, which is loaded for the first one. A
    dataset that this user has not made does not decide what is loaded: see `pipeline.dataset.origin`.

    Args:
        dataset: The rows' dataset.
        images: Loads the rows' images.
        settings: `KEY=VALUE` settings that replace the dataset's.
    """

    def __init__(self, dataset: Dataset, images: ImageSource, settings: Sequence[str] = ()) -> None:
        self.dataset = dataset
        self.images = images
        self.settings = tuple(settings)
        self._stages: Any = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, dict[str, HeatMap]] = OrderedDict()

    @property
    def are_stored(self) -> bool:
        """Whether they are the dataset's."""
        return self.dataset.has_heat_maps and not self.settings

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that rows need for `of`, beside those of a dataset without images and heat maps."""
        if self.are_stored:
            return tuple(field.name for field in HEAT_MAP_FIELDS)
        return (IMAGE_FIELD.name,) if self.dataset.has_images else ()

    def of(self, row: Mapping[str, Any]) -> dict[str, HeatMap]:
        """Heat maps by phrase.

        Args:
            row: Has `id`, `sample_id`, `file_name`, `width`, `height`, `captions`, `error`, `error_detail`, `columns`.

        Raises:
            PhraseboxError: The model cannot be loaded, or a stored map is damaged.
            InputError: The image cannot be loaded.
        """
        if self.are_stored:
            return {heat_map.text: heat_map for heat_map in mapped_record(row).heat_maps}
        with self._lock:
            if row["id"] not in self._kept:
                self._kept[row["id"]] = self._compute(row)
                if len(self._kept) > KEPT_SAMPLES:
                    self._kept.popitem(last=False)
            return self._kept[row["id"]]

    def _compute(self, row: Mapping[str, Any]) -> dict[str, HeatMap]:
        # torch and spaCy take seconds to import: only who asks for a heat map waits for them.
        from pipeline.engines.inline import run_stages  # noqa: PLC0415

        if self._stages is None:
            self._stages = self._load()
        try:
            content = self.images.load(row)
        except RowFault as fault:
            raise InputError(fault.error.detail) from fault
        sample = Sample(
            sample_id=row["sample_id"],
            source=row["sample_id"],
            captions=tuple(row["captions"]),
            image=ImageRef(file_name=row["file_name"], content=content),
        )
        (record,) = run_stages(self._stages, [Record.start(sample)], lambda *_: None)
        if record.error is not None:
            raise InputError(str(record.error))
        return {heat_map.text: heat_map for heat_map in record.heat_maps}

    def _load(self) -> Any:
        from pipeline.graph import build_steps  # noqa: PLC0415

        if not self.dataset.run.get("model_fingerprint"):
            raise ConfigError("the regions come from no model, which could tell where it sees a phrase")
        steps = build_steps(config_to_load(self.dataset, self.settings))
        if steps.fingerprint != self.dataset.run.get("model_fingerprint"):
            raise ConfigError("the dataset was made with other weights than its configuration finds now")
        stages = (*steps.before, steps.explains)
        for stage in stages:
            stage.setup()
        return stages


def config_to_load(dataset: Dataset, settings: Sequence[str] = ()) -> RunConfig:
    """The dataset's configuration for computing heat maps, with settings applied.

    Raises:
        InputError: The dataset does not say how it was made.
        ConfigError: Something has to be named first, or a setting cannot be used.
    """
    stored = dataset.run.get("config")
    if not isinstance(stored, dict):
        raise InputError("the dataset does not say how it was made")
    check_named(dataset, LOADED, settings, then=f"type: phrasebox inspect {shlex.quote(str(dataset.path))}")
    # Whatever the regions come from, and whatever files that names: heat maps are the explainer's.
    stored = {section: values for section, values in stored.items() if section != "source"}
    fixed = ("model.batch_size=1", "model.device=auto", "regions.calibration=none")
    return stored_config(stored, [*settings, *fixed])
