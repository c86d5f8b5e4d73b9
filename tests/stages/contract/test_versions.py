"""Which versions of a stored format are read, what others say, and the way from an old version to the current one."""

import pytest

from phrasebox.stages.contract import schema_versions
from phrasebox.stages.contract.errors import SchemaError
from phrasebox.stages.contract.schema import SCHEMA_VERSION
from phrasebox.stages.contract.schema_versions import check_version
from phrasebox.stages.contract.versions import UPGRADE, StoredFormat
from tests.messages import expect_error

REMEDY = "write it again"

LETTERS: StoredFormat[str] = StoredFormat(
    name="letter version",
    current=5,
    oldest=2,
    remedy=REMEDY,
    steps={2: lambda text: f"{text} 3", 4: lambda text: f"{text} 5"},
)


@pytest.mark.parametrize(
    ("version", "lifted"), [(2, "text 3 5"), (3, "text 5"), (4, "text 5"), (5, "text")]
)
def test_each_step_from_the_version_on_is_taken_in_order(version: int, lifted: str) -> None:
    """3 has none: what is new in 4 has defaults."""
    assert (LETTERS.find_fault(version), LETTERS.lift("text", version)) == ("", lifted)


@pytest.mark.parametrize("version", [1, 0, -1, None, "2", 3.0, True, [5]])
def test_what_is_too_old_or_no_version_is_to_be_made_again(version: object) -> None:
    fault = LETTERS.find_fault(version)
    assert fault == f"letter version {version}, this phrasebox reads 2 to 5: {REMEDY}"


def test_a_newer_one_names_its_writer_and_asks_for_an_upgrade() -> None:
    assert LETTERS.find_fault(6, "0.7.1") == (
        f"letter version 6 of phrasebox 0.7.1, this phrasebox reads 2 to 5: {UPGRADE}"
    )


def test_rows_and_manifest_of_a_dataset_have_the_same_versions() -> None:
    versions = {
        (stored.oldest, stored.current) for stored in (schema_versions.ROWS, schema_versions.MANIFEST)
    }
    assert versions == {(1, SCHEMA_VERSION)}


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"schema_version": "1"},
        {"schema_version": 99},
        {"schema_version": 99, "phrasebox_version": "7.0.0"},
        {"schema_version": 99, "phrasebox_version": "7\x1b[31m"},
    ],
)
def test_other_datasets_are_refused(manifest: dict[str, object]) -> None:
    check_version("out", {"schema_version": SCHEMA_VERSION})
    with expect_error(SchemaError):
        check_version("out", manifest)
