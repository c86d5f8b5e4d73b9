"""Faults: a closed list for samples, an exception tree for programs.

A fault in the *data* is raised as `RowFault` where it shows, and caught at the border of the
step: the sample's row keeps its `RowError`. A fault in the *program, its configuration or its
surroundings* is a `PhraseboxError` and ends the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal


class PhraseboxError(Exception):
    """Base of all errors that phrasebox raises on purpose; the message says what to do.

    Attributes:
        key: The key of the configuration, or the parameter, that the message is about; "" if it
            is about none. `str` puts it in front of the message.
        more: Further problems of the same configuration. `str` puts each on a line of its own.

    >>> str(PhraseboxError("expected a folder", key="input.path"))
    'input.path: expected a folder'
    """

    def __init__(self, message: str, *, key: str = "", more: Sequence[PhraseboxError] = ()) -> None:
        super().__init__(message)
        self.key = key
        self.more = more

    def __str__(self) -> str:
        message = super().__str__()
        return "\n".join([f"{self.key}: {message}" if self.key else message, *map(str, self.more)])


class ConfigError(PhraseboxError):
    """A configuration key or value that cannot be used."""


class PluginError(PhraseboxError):
    """A kind or a verb that no installed package declares, or that does not load."""


class InputError(PhraseboxError):
    """The input as a whole cannot be read, or it changed while it was read; single bad samples become rows instead."""


class WeightsError(PhraseboxError):
    """Model weights are missing, damaged or belong to an unsupported architecture."""


class ResourceError(PhraseboxError):
    """A worker did not get the device it was configured to use."""


class DeviceFault(PhraseboxError):
    """A GPU reports a fault after which its process can compute no more."""


class SchemaError(PhraseboxError):
    """A table, or a row of it, breaks the contract of a dataset's columns."""


class OutputError(PhraseboxError):
    """The dataset's folder can no longer be written: full, read-only, gone.

    Finished rows are kept.
    """


class ResumeError(PhraseboxError):
    """An output folder holds a run that cannot be continued with this configuration."""


class TooManyErrors(PhraseboxError):
    """A run is finished and its dataset complete, but more rows failed than `output.max_error_share` allows."""


class DoubtfulCaptions(PhraseboxError):
    """A run with `output.strict` is finished and its dataset complete, but most of its captions are doubtful."""


class WorkerCodeMismatch(PhraseboxError):
    """A worker imported another version of the code than the driver."""


DATASET_EXPECTED: Final = (
    "expected the folder that a run wrote (its output.path)"  # Of a path that is no dataset
)

Reason = Literal[
    "bad_row",
    "duplicate_id",
    "no_caption",
    "bad_caption",
    "missing_image",
    "bad_image",
    "image_too_large",
    "bad_location",
    "failed_download",
    "worker_died",
]
"""The only values of a row's `error`. For a new one see `phrasebox.pipeline.output.previous_run.Identity`."""

ROW_ERRORS: Final[dict[Reason, str]] = {
    "bad_row": "the input row cannot be parsed or lacks a required field",
    "duplicate_id": "an earlier sample has the same id",
    "no_caption": "the sample has no caption, or only white space",
    "bad_caption": "a caption is not text, or is longer than the limit",
    "missing_image": "the image file does not exist or cannot be opened",
    "bad_image": "the image cannot be decoded",
    "image_too_large": "the image has more pixels or bytes than the limits allow",
    "bad_location": "the path of the image or its text leaves the folder of the input, or is not a file path",
    "failed_download": "the downloader that made the input marked this sample as failed",
    "worker_died": "the worker, or the process, died each time that it had this sample alone",
}
"""Reason -> meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """The reason why a sample could not be annotated.

    Attributes:
        reason: The kind of the fault, see `ROW_ERRORS`.
        detail: What is wrong, where, and what to do.
    """

    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    def at(self, place: str) -> RowError:
        """Return the same error with its place in front of the detail."""
        return RowError(reason=self.reason, detail=f"{place}: {self.detail}")


class RowFault(Exception):
    """A fault of one sample, on its way to the border of the step; the row of the sample keeps its `error`.

    >>> str(RowFault("bad_image", "the file is empty").error.at("in.jsonl:3"))
    'bad_image: in.jsonl:3: the file is empty'
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.error = RowError(reason=reason, detail=detail)

    def __str__(self) -> str:
        return str(self.error)


def kind_of_value(value: object) -> str:
    """Return the kind of a value from JSON, or of a cell of a table, for messages."""
    names: dict[type, str] = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
        bytes: "bytes that are not UTF-8",
        type(None): "nothing",
    }
    return names.get(type(value), type(value).__name__)


def with_type(error: BaseException) -> str:
    """Return the type of an error and the first line of its message.

    Libraries go on for paragraphs with advice about themselves.
    """
    first_line, *_ = str(error).strip().split("\n")
    return f"{type(error).__name__}: {first_line}"


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line; its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
