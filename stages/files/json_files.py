"""JSON files in a form that pydantic checks."""

from __future__ import annotations

import codecs
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.files.storage import AnyPath

FormT = TypeVar("FormT")


def read_json_as(path: AnyPath, form: type[FormT]) -> FormT:
    """Return a JSON file in a form of pydantic.

    Raise InputError, which names the first place that is wrong.
    """
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        return TypeAdapter(form).validate_json(content)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """Return the first problem that pydantic found, with its place.

    >>> try:
    ...     TypeAdapter(dict[str, list[int]]).validate_json('{"sizes": [1, "x"]}')
    ... except ValidationError as error:
    ...     first_problem(error).partition(": ")[0]
    'sizes[1]'
    """
    problem = error.errors(include_url=False, include_input=False)[0]
    # Between the keys pydantic names a type of a union that it tried, as `function-after[...]`.
    keys = (
        f"[{key}]" if isinstance(key, int) else f".{key}"
        for key in problem["loc"]
        if not str(key).startswith("function-")
    )
    place = "".join(keys).removeprefix(".")
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
