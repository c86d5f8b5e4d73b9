"""What errors say: each message stands in `messages.json`, under the test that meets it.

Tests assert the class and the key of an error, the exit code and what is left behind; `expect_error` and
`assert_message` compare the sentence and its place. After a message was reworded,

    python -m pytest -n 0 --write-messages FILE...

stores the messages that the tests of these files meet. In a stored message "…" stands for any text.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.build.files import read_json

FILE = Path(__file__).with_suffix(".json")

TEMPORARY = {
    re.compile(r"(/[\w.-]+)*/pytest-\d+(/popen-gw\d+)?/[\w.-]+"): "TMP",  # a folder that a test has made
    re.compile(re.escape(str(FILE.parents[1]))): "HERE",
    re.compile(r"(?<=127\.0\.0\.1:)\d+"): "PORT",
}
"""What is another in each run, and what stands for it in the table."""

_STORED: dict[str, list[str]] = read_json(FILE)
_MET: dict[str, list[str]] = {}


@contextmanager
def expect_error(*classes: type[BaseException], key: str | tuple[str, ...] = "") -> Iterator[None]:
    """Expect an error with the message of the table, of exactly one of the classes, and about one of the keys.

    Several classes and keys are those of the cases of a parametrised test. By default an error is about no key.
    """
    with pytest.raises(classes) as caught:
        yield
    error = caught.value
    assert type(error) in classes, error
    assert getattr(error, "key", "") in ((key,) if isinstance(key, str) else key), error
    assert_message(str(error))


def assert_message(message: str) -> None:
    """Compare the next message of the running test with that of the table."""
    for pattern, name in TEMPORARY.items():
        message = pattern.sub(name, message)
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0]
    messages = _MET.setdefault(test, [])
    messages.append(message.encode("utf-8", "backslashreplace").decode())
    if os.environ.get("WRITE_MESSAGES"):
        return
    place = len(messages) - 1
    stored = _STORED.get(test, [])[place:]
    assert stored, (
        f"no message is stored for {test}, place {place} (see --write-messages): {messages[place]}"
    )
    if not _fits(stored[0], messages[place]):
        assert messages[place] == stored[0]


def _fits(stored: str, message: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, stored.split("…"))), message) is not None


def write_messages() -> None:
    """Store what the tests of this process met; of their files, nothing else is kept."""
    files = {test.partition("::")[0] for test in _MET}
    table = {test: messages for test, messages in _STORED.items() if test.partition("::")[0] not in files}
    for test, messages in _MET.items():
        stored = _STORED.get(test, [])
        stored += messages[len(stored) :]
        pairs = zip(stored, messages, strict=False)
        table[test] = [before if _fits(before, message) else message for before, message in pairs]
    FILE.write_text(
        json.dumps(table, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )
