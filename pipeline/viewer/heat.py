"""Heat maps of samples while somebody looks at them: computed again, as the run computed them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from pipeline.config import stored_config
from stages.contract.errors import ConfigError, InputError, RowFault
from stages.contract.records import HeatMap, ImageRef, Record, Sample
from stages.dataset.folder import Dataset
from stages.dataset.image_source import ImageSource

KEPT_SAMPLES: Final = 64
"""Samples whose maps are kept: a few kB each."""


class HeatMaps:
    """Computes the heat maps of rows with the dataset's own configuration and model, one sample at a time.

    The model is loaded for the first one.
    """

    def __init__(self, dataset: Dataset, images: ImageSource) -> None:
        self.dataset = dataset
        self.images = images
        self._stages: Any = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, dict[str, HeatMap]] = OrderedDict()

    def of(self, row: Mapping[str, Any]) -> dict[str, HeatMap]:
        """Heat maps by phrase. row: has `id`, `sample_id`, `file_name`, `captions`, and `image` if there is one.

        Raises PhraseboxError where the model cannot be had, InputError where the image cannot.
        """
        with self._lock:
            if row["id"] not in self._kept:
                self._kept[row["id"]] = self._compute(row)
                if len(self._kept) > KEPT_SAMPLES:
                    self._kept.popitem(last=False)
            return self._kept[row["id"]]

    def _compute(self, row: Mapping[str, Any]) -> dict[str, HeatMap]:
        # torch and spaCy take seconds to import: only who asks for a heat map waits for them.
        from pipeline.engines.batches import run_stages  # noqa: PLC0415

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
        from pipeline.graph import build_graph  # noqa: PLC0415

        if not self.dataset.run:
            raise InputError("the dataset does not say how it was made")
        config = stored_config(self.dataset.run["config"], ["model.batch_size=1", "model.device=auto"])
        graph = build_graph(config)
        if graph.fingerprint != self.dataset.run["model_fingerprint"]:
            raise ConfigError("the dataset was made with other weights than its configuration finds now")
        stages = (*graph.before, graph.model)
        for stage in stages:
            stage.setup()
        return stages
