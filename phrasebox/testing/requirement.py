"""How a contract is stated: a condition, and the sentence that is printed where it does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def require(condition: object, contract: str) -> None:
    """Raise AssertionError with the sentence of the contract unless the condition holds."""
    if not condition:
        raise AssertionError(contract)


@contextmanager
def expect_raised(contract: str, *kinds: type[BaseException], words: str = "") -> Iterator[None]:
    """Raise AssertionError with the contract unless the block raises one of the kinds, with `words` in its message."""
    try:
        yield
    except kinds as error:
        require(words in str(error), f"{contract}; its message was {error}")
    else:
        raise AssertionError(contract)
