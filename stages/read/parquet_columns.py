"""The columns of a Parquet file that hold images, captions and ids, and the meaning of a row's values."""

from __future__ import annotations

import posixpath
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

import pyarrow as pa
from pyarrow import types

from phrasebox.stages.contract.errors import InputError, RowFault
from phrasebox.stages.contract.records import ImageRef, storable
from phrasebox.stages.contract.values import Json
from phrasebox.stages.read.rows import CAPTION_FIELDS, IMAGE_FIELDS, FieldsConfig, relative_path, shorten
from phrasebox.stages.read.turns import ROLE_KEYS, TEXT_KEYS

BYTES_COLUMNS: Final = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "img")
"""Searched in this order for bytes or a struct; img2dataset names the column after its encoding."""

_ENCODINGS: Final = ("jpg", "jpeg", "png", "webp")
Form = Literal["bytes", "struct", "path"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of one file to read, and the meaning of a row's values.

    Attributes:
        image: The column of images.
        form: Its content: bytes, a struct of bytes and path, or paths.
        captions: The columns of captions.
        turns: The first of these that holds conversations; "" if none does.
        id: The column of ids.
        key: img2dataset's column of keys.
        status: img2dataset's column of download results.
    """

    image: str
    form: Form
    captions: tuple[str, ...]
    turns: str
    id: str | None
    key: str | None
    status: str | None

    @staticmethod
    def of(schema: Any, config: FieldsConfig, url: str) -> Columns:
        """Recognise the columns of an Arrow schema.

        Raise InputError with the names of its columns.
        """
        kinds = {field.name: field.type for field in schema}
        image, form = _image_column(kinds, config.image, url)
        is_encoded = form == "bytes" and image in _ENCODINGS
        has_status = _is_text(kinds.get("status")) and (
            is_encoded or "key" in kinds or "error_message" in kinds
        )
        if config.id is not None and not _is_id(kinds.get(config.id)):
            raise _column_error(
                url,
                kinds,
                "id",
                f"the column {config.id!r} of text or whole numbers",
            )
        captions = _caption_columns(kinds, config.caption, image, url)
        columns = Columns(
            image=image,
            form=form,
            captions=captions,
            turns=next((name for name in captions if _is_conversation(kinds[name])), ""),
            id=config.id or ("sample_id" if _is_id(kinds.get("sample_id")) else None),
            key="key" if _is_text(kinds.get("key")) else None,
            status="status" if has_status else None,
        )
        duplicates = [name for name in columns.names if schema.names.count(name) > 1]
        if duplicates:
            raise InputError(f"{url}: more than one column is named {', '.join(map(shorten, duplicates))}")
        return columns

    @property
    def names(self) -> list[str]:
        """The columns to read, each once."""
        columns = (self.image, *self.captions, self.id, self.key, self.status)
        return list(dict.fromkeys(name for name in columns if name is not None))

    @property
    def id_columns(self) -> list[str]:
        """The columns that determine ids."""
        return [name for name in (self.id, self.key) if name is not None]

    @property
    def fields(self) -> FieldsConfig:
        """The fields for `rows.RowParser`."""
        return FieldsConfig(
            image=self.image,
            caption=self.captions,
            id=self.id or "",
            image_root=None,
        )

    def is_failed(self, row: Json) -> bool:
        """Return whether img2dataset failed to download the row's image."""
        if self.status is None:
            return False
        return row[self.status] not in (None, "success") or (
            self.form == "bytes" and row[self.image] is None
        )

    def default_id(self, row: Json, name: str, place: str) -> str:
        """Return the id of a row without one."""
        key = self._key_of(row)
        return f"{storable(name)}/{key}" if key else place

    def with_path(self, row: Json) -> Json:
        """Return the row with the image's path in place of its struct."""
        return {**row, self.image: (row[self.image] or {}).get("path")} if self.form == "struct" else row

    def inline_image(self, row: Json, place: str) -> ImageRef | None:
        """Return the image that the row holds; None if it has a path only.

        Raise RowFault (missing_image).
        """
        if self.form == "path":
            return None
        value = {"bytes": row[self.image]} if self.form == "bytes" else row[self.image] or {}
        content = value.get("bytes")
        path = value.get("path")
        if content is not None:
            return ImageRef(file_name=self._file_name(row, path, place), content=content)
        if path is not None:
            return None
        raise RowFault("missing_image", f"the column {self.image!r} is null")

    def _file_name(self, row: Json, path: object, place: str) -> str:
        """A relative name for the dataset: from the path, else from the key, else the place."""
        if isinstance(path, str):
            name = posixpath.basename(path) if path.startswith("/") else path
            with suppress(RowFault):
                return relative_path(name, "/")
        if key := self._key_of(row):
            with suppress(RowFault):  # no key decides where a file is written, or looked for
                return relative_path(f"{key}.{self.image if self.image in _ENCODINGS else 'jpg'}", "/")
        return place

    def _key_of(self, row: Json) -> str | None:
        key = row[self.key] if self.key is not None else None
        return key if isinstance(key, str) else None


def _image_column(kinds: Json, setting: str | None, url: str) -> tuple[str, Form]:
    forms = {name: form for name, kind in kinds.items() if (form := _form(kind)) is not None}
    if setting is not None:
        if setting not in forms:
            expected = f"the column {setting!r} of bytes, of struct<bytes, path> or of paths"
            raise _column_error(url, kinds, "image", expected)
        return setting, forms[setting]
    structs = [
        name
        for name, form in forms.items()
        if form == "struct" and kinds[name].get_field_index("bytes") >= 0
    ]
    candidates = [name for name in BYTES_COLUMNS if forms.get(name) in ("bytes", "struct")]
    candidates += structs if len(structs) == 1 else []
    candidates += [name for name in IMAGE_FIELDS if forms.get(name) == "path"]
    if candidates:
        return candidates[0], forms[candidates[0]]
    expected = (
        f"a column of images: bytes in {', '.join(BYTES_COLUMNS)}, a struct<bytes, path>, "
        f"or paths in {', '.join(IMAGE_FIELDS)}"
    )
    raise _column_error(url, kinds, "image", expected)


def _caption_columns(
    kinds: Json, setting: str | tuple[str, ...] | None, image: str, url: str
) -> tuple[str, ...]:
    if setting is not None:
        names = (setting,) if isinstance(setting, str) else setting
        for name in names:
            if not _is_captions(kinds.get(name)):
                raise _column_error(
                    url,
                    kinds,
                    "caption",
                    f"the column {name!r} of text, of lists of text or of turns",
                )
        return names
    for name in CAPTION_FIELDS:
        if name != image and _is_captions(kinds.get(name)):
            return (name,)
    expected = f"a column of text, of lists of text or of turns: {', '.join(CAPTION_FIELDS)}"
    raise _column_error(url, kinds, "caption", expected)


def _form(kind: Any) -> Form | None:
    """The form of an image column with this Arrow type; None if the type cannot hold images."""
    if _is_bytes(kind):
        return "bytes"
    if _is_text(kind):
        return "path"
    if not types.is_struct(kind):
        return None
    children = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
    usable = _is_bytes(children.get("bytes", pa.null())) or _is_text(children.get("path"))
    return "struct" if usable else None


def _is_bytes(kind: Any) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _is_text(kind: Any) -> bool:
    if kind is not None and types.is_dictionary(kind):
        kind = kind.value_type
    return kind is not None and bool(types.is_string(kind) or types.is_large_string(kind))


def _is_captions(kind: Any) -> bool:
    if kind is None:
        return False
    return _is_text(kind.value_type if _is_list(kind) else kind) or _is_conversation(kind)


def _is_conversation(kind: Any) -> bool:
    if not (_is_list(kind) and types.is_struct(kind.value_type)):
        return False
    names = {kind.value_type.field(index).name for index in range(kind.value_type.num_fields)}
    return not names.isdisjoint(ROLE_KEYS) and not names.isdisjoint(TEXT_KEYS)


def _is_list(kind: Any) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_id(kind: Any) -> bool:
    return kind is not None and (_is_text(kind) or bool(types.is_integer(kind)))


def _column_error(url: str, kinds: Json, key: str, expected: str) -> InputError:
    present = (
        ", ".join(f"{shorten(name, 40)} ({kind})" for name, kind in list(kinds.items())[:40]) or "none"
    )
    return InputError(
        f"{url}: expected {expected}; the columns are {present}. Set input.{key} to the right one"
    )


def values_of(column: Any) -> list[Any]:
    """Return the values of an Arrow column. A text that is not UTF-8 becomes bytes."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value_of(scalar) for scalar in column]
    return values


def _value_of(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if isinstance(scalar, pa.ListScalar):
            return [_value_of(item) for item in scalar.values]
        if isinstance(scalar, pa.StructScalar):
            return {key: _value_of(value) for key, value in scalar.items()}
        text = scalar.value if isinstance(scalar, pa.DictionaryScalar) else scalar
        return bytes(text.as_buffer())
