"""What the server refuses, whatever a browser would ask."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.pipeline.viewer.conftest import Served


def ask(
    served: Served, path: str, method: str = "GET", body: str | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """An answer to exactly this path: browsers and clients would tidy it up."""
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc)
    connection.putrequest(method, path, skip_host="Host" in (headers or {}))
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(None if body is None else body.encode())
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/../../../../../../../../etc/passwd",
        "/static/..%5c..%5capp.py",
        "/static//etc/passwd",
        "/../../etc/passwd",
        "/rows/../../dataset.json",
        "/rows/0/../../dataset.json",
        "/dataset.json",
        "/data/00000.parquet",
        "/rows/99999999999/image.jpg",
        "/rows/-1/image.jpg",
        "/rows/0/heat/99.png",
        "/sample/1",
        "/sample/99999999999999999999999999",
        "/suggest/sample_id?text=a",
        pytest.param(f"/?page={'9' * 5000}", id="a page of 5,000 digits"),
        pytest.param(f"/sample/{'9' * 5000}", id="a sample of 5,000 digits"),
        pytest.param(f"/rows/{'9' * 5000}/image.jpg", id="a row of 5,000 digits"),
        pytest.param(f"/rows/0/image.jpg?side={'9' * 5000}", id="a side of 5,000 digits"),
        pytest.param(f"/rows/0/heat/{'9' * 5000}.png", id="a region of 5,000 digits"),
    ],
)
def test_nothing_beside_the_pages_is_served(served: Served, path: str) -> None:
    status, content = ask(served, path)
    assert status == 404
    assert b"root:" not in content
    assert b"import" not in content


def test_an_image_outside_of_the_root_is_not_served(served: Served, dataset: Path) -> None:
    statuses = {}
    for number in range(8):
        status, content = ask(served, f"/rows/{number}/image.jpg")
        statuses[number] = status
        assert b"root:" not in content
        assert content.startswith(b"\xff\xd8") == (status == 200)
    assert [number for number, status in statuses.items() if status == 404] == [3, 4, 5]


def test_another_host_name_is_refused(served: Served) -> None:
    """A page elsewhere may let its own name point at this machine."""
    assert ask(served, "/", headers={"Host": "evil.example"})[0] == 400


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"sample_ids": ["a"], "mark": "good"}, {"Content-Type": "text/plain"}, 415),
        ({"sample_ids": ["a"], "mark": "good"}, {"Origin": "http://evil.example"}, 403),
        ({"sample_ids": ["a"], "mark": "great"}, {}, 400),
        ({"sample_ids": "a", "mark": "good"}, {}, 400),
        ({"sample_ids": [1], "mark": "good"}, {}, 400),
        ({"mark": "good"}, {}, 400),
        ([], {}, 400),
        ({"sample_ids": ["a"], "mark": ["good"]}, {}, 400),
    ],
)
def test_marks_from_elsewhere_or_of_another_form_are_refused(
    served: Served, dataset: Path, body: object, headers: dict[str, str], status: int
) -> None:
    sent = {"Content-Type": "application/json", **headers}
    assert ask(served, "/marks", "POST", json.dumps(body), sent)[0] == status
    assert not (dataset / "marks.json").exists()


def test_marks_that_cannot_be_saved_are_said(served: Served, dataset: Path) -> None:
    (dataset / "marks.json").mkdir()  # as good as a full disk: the file cannot take its place
    body = json.dumps({"sample_ids": ["a"], "mark": "good"})
    status, content = ask(served, "/marks", "POST", body, {"Content-Type": "application/json"})
    assert status == 507
    assert b"cannot be saved" in content
    assert served.viewer.pages.marks == {}


def test_who_reads_the_marks_sees_those_before_or_those_after(served: Served) -> None:
    """Another thread may be in the middle of the old ones."""
    viewer = served.viewer
    viewer.mark(["a", "b"], "good")
    before = viewer.pages.marks
    reading = iter(before.items())
    assert next(reading) == ("a", "good")
    viewer.mark(["a", "c"], "bad")
    assert list(reading) == [("b", "good")]
    assert before == {"a": "good", "b": "good"}
    assert viewer.pages.marks == {"b": "good", "a": "bad", "c": "bad"}


@pytest.mark.parametrize(
    "query",
    [
        f"seed={'9' * 5000}",
        "score_min=2",
        "score_min=x",
        "status=wrong",
        "seed=-1",
        "sort=size",
    ],
)
def test_a_filter_that_cannot_be_used_is_said(served: Served, query: str) -> None:
    status, content = ask(served, f"/?{query}")
    assert status == 400
    assert b"This filter cannot be used" in content


def test_a_page_beyond_the_last_is_empty(served: Served) -> None:
    status, content = ask(served, "/?page=9999999")
    assert status == 200
    assert b"Nothing was found" in content
