"""Regions for the rows of a table, in a program or a pipeline of other people:

    import phrasebox

    annotate = phrasebox.Annotator("photo", regions={"absent_share": 0.05})
    table = annotate(table)  # with the columns annotations, absent, caption_score, error and error_detail

This module loads neither torch nor the model: a process does so when it annotates the first table.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pyarrow as pa
from pydantic import BaseModel

from phrasebox.pipeline.annotate.config import AnnotatorConfig
from phrasebox.pipeline.annotate.estimates import Estimates
from phrasebox.pipeline.annotate.rows import MemoryReader
from phrasebox.pipeline.annotate.tables import table_of
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.schema import ColumnOption, dataset_schema, records_to_rows
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.config import ModelConfig, check_model_files

if TYPE_CHECKING:
    from phrasebox.pipeline.annotate.worker import Worker

ADDED: Final = ("annotations", "absent", "caption_score", "error", "error_detail")
"""The columns that every annotator adds."""

MAPS: Final = ("phrases", "heat_maps", "caption_presence")
"""Those that it adds with `output.heat_maps`."""

Section = Mapping[str, Any] | BaseModel | None
"""A section of a run's configuration, as plain values or as its model."""

_log = logging.getLogger(__name__)


def _schema(options: tuple[ColumnOption, ...], names: tuple[str, ...]) -> Any:
    schema = dataset_schema(options)
    return pa.schema([schema.field(name) for name in names])


class Annotator:
    """Adds regions to tables of captioned images, with the rows that a run makes of the same images.

    Columns are found as in a Parquet input: `image` (bytes, a struct of bytes and path as Hugging Face has it, or a
    path), `path` and others for the image, `caption`, `captions`, `text` and others for the captions. In a table
    without captions `phrases` are taken, and each is judged by itself. `input` names other columns. The added
    columns have the types and the meaning of a dataset's. A row with a fault has its reason in `error`.

    A run estimates some numbers from its first images: the share of phrases that are absent, presence and the power
    of the heat where no calibration knows them, and whether the images are like those of the calibration. A call of
    an annotator sees one batch, so it estimates nothing. A number is given (`regions.absent_share`), fitted once to
    some images (`fit`), or off. `origins` says which, and the log warns once of what is off.

    An annotator can be pickled. Each process loads the model when it annotates its first table, and threads take
    turns. Two rows with the same id, or with the same image and captions, have annotations with the same ids.

    Args:
        model: As `Locator` takes it: "photo", "NAME/TAG", a path, or the `model` section of a run.
        input: The columns of the table and where paths start from: `image`, `caption`, `phrase`, `id`, `turns`,
            `image_root`, and the file `phrases`, as a dict.
        phrases, images, explain, regions: These sections of a run, as dicts or as their models.
        output: `caption_score` and `heat_maps` of a run, as a dict. With `heat_maps` the columns `phrases`,
            `heat_maps` and `caption_presence` are added.
        run: A run's configuration, for all that the other arguments leave out.
        estimates: The result of `fit`, or the file that it was saved in.

    Attributes:
        schema: The added columns as a `pyarrow.Schema`, also of the class.
        estimates: What `fit` has estimated; None if nothing was.

    Raises:
        ConfigError: A setting, the model or the estimates cannot be used; the message names the key.
        WeightsError: The weights are missing.

    >>> from phrasebox import Annotator
    >>> annotate = Annotator("demo", regions={"absent_share": 0.05})
    >>> rows = annotate([{"image": "photo.jpg", "caption": "a red ball and two boxes"}])
    >>> list(rows[0])
    ['image', 'caption', 'annotations', 'absent', 'caption_score', 'error', 'error_detail']
    >>> annotate([{"image": "none.jpg", "caption": "a red ball"}])[0]["error"]
    'missing_image'
    >>> annotate.origins["absent_share"]
    'given'
    """

    schema: ClassVar[Any] = _schema((), ADDED)

    def __init__(
        self,
        model: str | os.PathLike[str] | Mapping[str, Any] | ModelConfig | None = None,
        *,
        input: Section = None,
        phrases: Section = None,
        images: Section = None,
        explain: Section = None,
        regions: Section = None,
        output: Section = None,
        run: RunConfig | None = None,
        estimates: Estimates | str | os.PathLike[str] | None = None,
    ) -> None:
        sections: Json = {
            "model": {"name": os.fspath(model)} if isinstance(model, (str, os.PathLike)) else model,
            "input": input,
            "phrases": phrases,
            "images": images,
            "explain": explain,
            "regions": regions,
            "output": output,
        }
        self._config = AnnotatorConfig.of(run, sections)
        check_model_files(self._config.model)
        self.estimates = estimates if isinstance(estimates, Estimates | None) else Estimates.load(estimates)
        if self.estimates is not None:
            self.estimates.check_settings(self._config.settings())
        self._options: tuple[ColumnOption, ...] = ("heat_maps",) if self._config.output.heat_maps else ()
        if self._options:
            self.schema = _schema(self._options, (*ADDED, *MAPS))  # type: ignore[misc]
        self._forget()

    def __call__(self, table: Any) -> Any:
        """Return a table with the columns of `schema` added, in the form and the order that it has.

        table: A `pyarrow.Table` or `RecordBatch`, a DataFrame of pandas, a list of dicts, or a dict of columns, as
        Ray Data and Hugging Face's `map` hand them on. It may be of any length: images are computed in the batches
        of a run.

        Raises:
            InputError: It is no table, lacks a column, or has an added one already.
            WeightsError, ResourceError: The model cannot be loaded, or the device's memory does not hold it.
        """
        source = table_of(table)
        if not len(source):
            return source.with_columns(self.schema.empty_table())
        reader = MemoryReader(source, self._config.input)
        if repeated := [name for name in self.schema.names if name in source.schema.names]:
            raise InputError(
                f"the table has the columns {', '.join(repeated)} already: drop or rename them"
            )
        maker = self._worker().maker
        samples = reader.samples(reader.pieces())
        batches = maker.annotate_questions(samples) if reader.asks else maker.annotate(samples)
        rows = [records_to_rows(batch, self._options).select(self.schema.names) for batch in batches]
        return source.with_columns(pa.concat_tables(rows))

    def fit(self, table: Any, on_progress: Callable[[int, int], None] = lambda *_: None) -> Annotator:
        """Estimate from captioned images what a run over them would, keep it in `estimates`, and return self.

        At most 300 images are computed, taken evenly from the table. They should be like those that are to be
        annotated, with as many captions. `estimates.save(path)` keeps the result, and `Annotator(..., estimates=path)`
        takes it.

        Args:
            table: As in a call, with captions.
            on_progress: Called with the number of images that are computed, and with that of all.

        Raises:
            InputError: It is no table, lacks a column, or has phrases in the place of captions.
        """
        reader = MemoryReader(table_of(table), self._config.input)
        if reader.asks:
            raise InputError("estimates need images with captions, and the table has phrases")
        from phrasebox.pipeline.annotate.worker import fit_estimates  # noqa: PLC0415  it loads torch

        with self._lock:
            self.estimates = fit_estimates(self._config, reader, on_progress)
            self._process = 0
        return self

    @property
    def origins(self) -> dict[str, str]:
        """Where numbers come from that a run may estimate: "calibration", "given", "fitted" or "off". Loads the model.

        - `presence`: the probability that an image shows a phrase.
        - `absent_share`: the share of phrases that are expected to be absent. Off: 0.05, and 0.5 of phrases without
          captions.
        - `exponent`: the power of the heat. Off: 1.
        - `shift`: whether the images are like those of the calibration. Off: they were not compared.
        """
        return dict(self._worker().basis.origins)

    @property
    def notes(self) -> tuple[str, ...]:
        """What scores mean, and what was estimated or not, in sentences. Loads the model."""
        return self._worker().basis.notes

    def _forget(self) -> None:
        self._lock = RLock()
        self._ready: Worker | None = None
        self._process = 0  # that has set it up

    def _worker(self) -> Worker:
        """Return the stages in this process. Those of the process that this one was forked from do not count."""
        from phrasebox.pipeline.annotate.worker import Worker  # noqa: PLC0415  it loads torch

        with self._lock:
            if self._ready is None or self._process != os.getpid():
                self._ready = Worker(self._config, self.estimates)
                self._process = os.getpid()
                if self._ready.basis.open_words:
                    _log.warning(
                        "%s: not estimated: %s; fit(table) estimates, and regions.absent_share gives the share",
                        self,
                        self._ready.basis.open_words,
                    )
            return self._ready

    def __getstate__(self) -> Json:
        """Return settings and estimates: a process that gets them loads the model itself."""
        return {"config": self._config, "estimates": self.estimates, "options": self._options}

    def __setstate__(self, state: Json) -> None:
        self._config = state["config"]
        self.estimates = state["estimates"]
        self._options = state["options"]
        if self._options:
            self.schema = _schema(self._options, (*ADDED, *MAPS))  # type: ignore[misc]
        self._forget()

    def __repr__(self) -> str:
        """Return the model, and whether there are estimates."""
        estimates = "no estimates" if self.estimates is None else "estimates"
        return f"Annotator({self._config.model.label}, {estimates})"
