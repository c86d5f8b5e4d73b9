"""Make a `Sample` from the fields of an input row, by the same rules for every kind of table.

Every row is a sample. If it has several faults, the first in this order is reported: the id,
the image, the captions. A missing or empty caption is not a fault here: the phrases stage
reports it.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from phrasebox.stages.contract.errors import InputError, RowError, RowFault, kind_of_value, one_line
from phrasebox.stages.contract.records import NO_IMAGE, ImageRef, Sample, storable
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import absolute, is_local, join, parent, place_of
from phrasebox.stages.read.base import Piece
from phrasebox.stages.read.streams import TO_UTF_8, is_utf_16
from phrasebox.stages.read.turns import CAPTION_ROLES, TURN_FIELDS, captions_of_turns, is_conversation

IMAGE_FIELDS: Final = (
    "image",
    "image_path",
    "file_name",
    "img_path",
    "path",
    "filepath",
    "filename",
)
"""Searched in this order: ours and Rex-Omni's, TAO's, Hugging Face imagefolder's, others', open_clip's, others'."""

CAPTION_FIELDS: Final = (
    "caption",
    "captions",
    "text",
    "texts",
    "txt",
    "sentence",
    "sentences",
    "TEXT",
    "title",
    "vlm_caption",
    *TURN_FIELDS,
)
"""Searched in this order; the first that is present and not null is taken."""

ID_FIELDS: Final = ("id", "sample_id")


class FieldsConfig(BaseModel):
    """The names of a row's fields: a part of the configs of tables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | None = Field(
        None,
        description="Field with the image's path; by default the first of `image`, "
        "`image_path`, `file_name`, `img_path`, `path`, `filepath`, `filename`.",
    )
    caption: str | tuple[str, ...] | None = Field(
        None,
        description="Field with a caption or a list of captions, or several fields that are all "
        "taken, in order; by default the first of `caption`, `captions`, `text`, `texts`, "
        "`txt`, `sentence`, `sentences`, `TEXT`, `title`, `vlm_caption`, `conversations`, "
        "`messages`. A list of turns, as LLaVA has them, is read by `turns`.",
    )
    turns: tuple[str, ...] = Field(
        CAPTION_ROLES,
        min_length=1,
        description="Roles (`from` or `role`) whose turns in a conversation are captions; each turn is a caption.",
    )
    id: str | None = Field(
        None,
        description="Field with the sample's id, text or whole number; by default `id` or "
        "`sample_id`. Rows without an id are identified by their place.",
    )
    image_root: str | None = Field(
        None,
        description="Folder that image paths are relative to and may not leave; by default the "
        "folder of the input file. Symbolic links below it are followed: who can write there "
        "decides what is read.",
    )

    def names(self, key: Literal["image", "caption", "id"]) -> tuple[str, ...]:
        """Return the fields to search for the image, for captions or for the id."""
        setting: str | tuple[str, ...] | None = getattr(self, key)
        if setting is None:
            return {"image": IMAGE_FIELDS, "caption": CAPTION_FIELDS, "id": ID_FIELDS}[key]
        return (setting,) if isinstance(setting, str) else setting


Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowParser:
    """Make samples from rows.

    Attributes:
        fields: The names of the fields.
        image_root: Absolute location of the images' folder; None for the folder of the input
            file.
    """

    fields: FieldsConfig
    image_root: str | None

    @staticmethod
    def of(fields: FieldsConfig) -> RowParser:
        """Return the parser for a config.

        It makes a relative `image_root` absolute, so call it on the driver.
        """
        return RowParser(
            fields=fields,
            image_root=None if fields.image_root is None else absolute(fields.image_root),
        )

    def check_image_root(self) -> None:
        """Raise InputError if the image root is local and no folder."""
        if (
            self.image_root is not None
            and is_local(self.image_root)
            and not place_of(self.image_root).is_dir()
        ):
            raise InputError(f"no such folder: {self.image_root}", key="input.image_root")

    def check_fields(self, columns: Sequence[str], expected: str) -> None:
        """Raise InputError unless a table has columns for images and captions.

        The message begins with `expected`, and the names of absent columns follow.
        """
        self._check_column("image", self.fields.names("image"), columns, expected)
        self._check_column("caption", self.fields.names("caption"), columns, expected)

    def check_header(self, columns: Sequence[str], expected: str) -> None:
        """Raise InputError as `check_fields`, and unless all columns that the configuration names are there."""
        self.check_fields(columns, expected)
        for name in self.fields.names("caption") if self.fields.caption else ():
            self._check_column("caption", (name,), columns, expected)
        if self.fields.id:
            self._check_column("id", (self.fields.id,), columns, expected)

    @staticmethod
    def _check_column(key: str, names: Sequence[str], columns: Sequence[str], expected: str) -> None:
        """Raise InputError unless one of the names is a column."""
        if not {*names} & {*columns}:
            present = ", ".join(shorten(name, 40) for name in columns[:40]) or "none"
            raise InputError(
                f"{expected} {' or '.join(map(repr, names))}, found {present}. Set input.{key} to the right one"
            )

    def image_of(self, row: Json, piece: Piece) -> ImageRef:
        """Return the image at the row's path. Raise RowFault (bad_row, bad_location).

        Its `file_name` is relative to the image root, or without one to the common folder of
        the input's files. So two rows have equal names only for the same image.
        """
        value = image_path(row, self.fields.names("image"))
        root = self.image_root or parent(piece.url)
        relative = relative_path(value, root)
        name = relative if self.image_root else posixpath.join(posixpath.dirname(piece.name), relative)
        return ImageRef(file_name=name, url=join(root, relative))

    def id_of(self, row: Json, place: str) -> str:
        """Return the row's id, or its place if it has no usable id."""
        return usable_id(row, self.fields.names("id")) or place

    def captions_of(self, row: Json) -> tuple[str, ...]:
        """Return the captions in all fields that the configuration names, else in the first.

        Raise RowFault as `captions_of`.
        """
        names = self.fields.names("caption")
        if self.fields.caption is None:
            names = (first_field(row, names)[0],)
        return tuple(text for name in names for text in captions_of(row, name, self.fields.turns))

    def turns_field(self, row: Json) -> str:
        """Return the name of the first field whose turns are captions; "" if none is a conversation."""
        names = self.fields.names("caption")
        fields = [(name, row.get(name)) for name in names]
        if self.fields.caption is None:
            fields = [first_field(row, names)]
        return next((name for name, value in fields if is_conversation(value)), "")

    def sample(
        self,
        row: Json,
        *,
        place: str,
        piece: Piece,
        default_id: str = "",
        image: Callable[[], ImageRef | None] = lambda: None,
    ) -> Sample:
        """Return the sample of one row, with the first of its faults.

        Its id is the row's, else `default_id`, else its place. `image` returns the image if the
        row itself holds it, else None; it may raise RowFault.
        """
        error: RowError | None = None

        def note_fault(step: Callable[[], Value], otherwise: Value) -> Value:
            nonlocal error
            try:
                return step()
            except RowFault as fault:
                error = error or fault.error.at(place)
                return otherwise

        no_captions = tuple[str, ...]()
        sample_id = note_fault(lambda: explicit_id(row, self.fields.names("id")), None)
        reference = note_fault(lambda: image() or self.image_of(row, piece), NO_IMAGE)
        captions = note_fault(lambda: self.captions_of(row), no_captions)
        sample_id = sample_id or default_id or place
        return Sample(
            sample_id=sample_id,
            source=place,
            captions=captions,
            image=reference,
            error=error,
        )


def reject_repeat(sample: Sample) -> Sample:
    """Return a sample with an id that an earlier sample has: as the error duplicate_id, with its place in the id."""
    new_id = f"{sample.sample_id}#{sample.source}"
    detail = f"{sample.source}: an earlier sample has the id {shorten(sample.sample_id)}"
    return replace(sample, sample_id=new_id, error=RowError(reason="duplicate_id", detail=detail))


def bad_row(place: str, fault: RowFault, sample_id: str = "") -> Sample:
    """Return the sample of a row that could not be parsed; without an id, its place is its id."""
    return Sample(sample_id=sample_id or place, source=place, error=fault.error.at(place))


def first_field(row: Json, names: Sequence[str]) -> tuple[str, Any]:
    """Return name and value of the first field that is present and not null, else ("", None)."""
    return next(((name, row[name]) for name in names if row.get(name) is not None), ("", None))


def explicit_id(row: Json, names: Sequence[str]) -> str | None:
    """Return the row's id as text; None if it has none. Raise RowFault (bad_row)."""
    name, value = first_field(row, names)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowFault(
            "bad_row",
            f"{name!r} is {kind_of_value(value)}, expected text or a whole number",
        )
    if not value:
        raise RowFault("bad_row", f"{name!r} is empty")
    if not is_storable(value):
        raise RowFault("bad_row", f"{name!r} holds half of a surrogate pair: {shorten(value)}")
    return value


def usable_id(row: Json, names: Sequence[str]) -> str | None:
    """Return the row's id as text; None if it has no usable id."""
    try:
        return explicit_id(row, names)
    except RowFault:
        return None


def captions_of(row: Json, name: str, roles: Sequence[str] = CAPTION_ROLES) -> tuple[str, ...]:
    """Return the captions in a field of a row, unchanged; none if it has no such field.

    Of a conversation they are the turns of `roles`. Raise RowFault (bad_caption, no_caption).
    """
    value = row.get(name)
    if isinstance(value, list) and is_conversation(value):
        value = captions_of_turns(name, value, roles)
    texts = value if isinstance(value, list | tuple) else [value]
    captions = [text for text in texts if text is not None]
    for text in captions:
        if not isinstance(text, str):
            problem = f"{name!r} holds {kind_of_value(text)}, expected text"
            raise RowFault("bad_caption", problem)
        if not is_storable(text):
            problem = f"{name!r} holds half of a surrogate pair: {shorten(text)}"
            raise RowFault("bad_caption", problem)
    return tuple(captions)


def image_path(row: Json, names: Sequence[str]) -> str:
    """Return the path of the image in the row, unchanged. Raise RowFault (bad_row)."""
    name, value = first_field(row, names)
    if value is None:
        fields = ", ".join(shorten(str(key), 40) for key in list(row)[:12]) or "none"
        expected = " or ".join(map(repr, names))
        raise RowFault("bad_row", f"no image: expected the field {expected}, the row has {fields}")
    if not isinstance(value, str):
        raise RowFault(
            "bad_row",
            f"{name!r} is {kind_of_value(value)}, expected the path of an image",
        )
    return value


def relative_path(value: str, root: str) -> str:
    """Return an image path, normalised and relative to the root. The disk is not accessed.

    An absolute path must be below a root on this machine. Raise RowFault: bad_row if the path
    is empty, bad_location if it leaves the root or is a URL.

    >>> relative_path("a/../kitchen/1.jpg", "/photos")
    'kitchen/1.jpg'
    """
    if not value.strip():
        raise RowFault("bad_row", "the image path is empty")
    quoted = shorten(value)
    if "://" in value or value.lower().startswith(("file:", "http:", "https:", "data:")):
        raise RowFault(
            "bad_location",
            f"{quoted} is a URL; download images first, then give their paths",
        )
    if "\0" in value or not is_storable(value):
        raise RowFault("bad_location", f"{quoted} cannot be the name of a file")
    normal = posixpath.normpath(value)
    if normal.startswith("/"):
        if not is_local(root) or os.path.commonpath([root, normal]) != root or normal == root:
            raise RowFault(
                "bad_location",
                f"{quoted} is not below the image root (input.image_root)",
            )
        normal = normal[len(root) :].lstrip("/")
    if normal == ".":
        raise RowFault(
            "bad_location",
            f"{quoted} is the image root itself, expected a file below it",
        )
    if normal == ".." or normal.startswith("../"):
        raise RowFault("bad_location", f"{quoted} leaves the image root (input.image_root)")
    return normal


def json_object(content: bytes) -> Json:
    """Return the object in a JSON text, which may begin with a byte order mark.

    Raise RowFault (bad_row).
    """
    if is_utf_16(content):
        raise RowFault("bad_row", f"the file is UTF-16; {TO_UTF_8}")
    try:
        text = content.decode("utf-8-sig")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise RowFault("bad_row", f"byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise RowFault("bad_row", f"not JSON: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or a deep nesting
        raise RowFault("bad_row", f"not readable as JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise RowFault("bad_row", f"expected a JSON object, got {shorten(text.strip())}")
    return value


def decode_text(content: bytes, name: str) -> str:
    """Return the text of a file or member. Raise RowFault (bad_caption) unless it is UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowFault(
            "bad_caption",
            f"{shorten(name)} is not UTF-8 at byte {error.start}",
        ) from error


def is_storable(text: str) -> bool:
    """Return whether the text has no lone surrogates: UTF-8, and so any table, cannot hold them."""
    return text.isascii() or storable(text) == text


def shorten(text: str, limit: int = 80) -> str:
    """Return the text in quotes for a message, cut to about `limit` characters."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def safe_place(name: str, row: int | str) -> str:
    """Return the name of a row of a file in ids and messages: "captions.jsonl:17"."""
    return f"{storable(name)}:{row}"
