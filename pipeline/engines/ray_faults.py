"""Ray's errors in our words: what happened, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ray import exceptions

from pipeline.output.folder import cannot_write, is_about_writing
from stages.contract.errors import PhraseboxError, ResourceError
from stages.storage import AnyPath

_GOES_ON: Final = "What is finished is kept, the same command goes on from there"


def readable(error: Exception, folder: AnyPath) -> Exception:
    """The error to raise for one that Ray raised: one of ours if the surroundings are to blame, else as it is.

    folder   where the dataset goes: the only thing that workers write
    """
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, PhraseboxError) and not isinstance(link, exceptions.RayError):
            return link
    for link in chain:
        if isinstance(link, exceptions.OutOfDiskError):
            return ResourceError(f"the disk that holds Ray's temporary files is full: make room there. {_GOES_ON}")
        if isinstance(link, exceptions.OutOfMemoryError):
            return ResourceError(
                "a node's memory is full, and Ray had to end a worker again and again: lower engine.cpu_workers or "
                f"engine.explain_workers, or model.batch_size. {_GOES_ON}"
            )
        if isinstance(link, exceptions.ObjectStoreFullError):
            return ResourceError(f"Ray's object store is full: raise engine.object_store_bytes. {_GOES_ON}")
        if isinstance(link, OSError) and not isinstance(link, exceptions.RayError) and is_about_writing(folder, link):
            return cannot_write(folder, link)
    if isinstance(error, (exceptions.ActorDiedError, exceptions.WorkerCrashedError, exceptions.NodeDiedError)):
        return ResourceError(f"workers died one after the other: {_first_line(error)}. {_GOES_ON}")
    if isinstance(error, (exceptions.ObjectLostError, exceptions.RaySystemError)):
        return ResourceError(
            f"the Ray cluster lost data that it could not make again: {_first_line(error)}. {_GOES_ON}"
        )
    return error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what Ray packed into it, and what it was raised from."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        link = todo.pop(0)
        if isinstance(link, BaseException) and id(link) not in seen:
            seen.add(id(link))
            yield link
            todo += [getattr(link, "cause", None), link.__cause__]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
