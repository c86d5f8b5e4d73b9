"""What the server rejects, whatever a browser would ask."""

import http.client
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from phrasebox.pipeline.dataset.append_log import LONGEST_TEXT
from phrasebox.pipeline.dataset.marks import append_marks, read_marks
from phrasebox.pipeline.viewer.app import MOST_BODY_BYTES, Viewer
from tests.build.datasets import manifest_of, rows_of
from tests.pipeline.viewer.conftest import Served, serving

DIGITS = "9" * 5000
JSON = {"Content-Type": "application/json"}


def ask(
    served: Served,
    path: str,
    method: str = "GET",
    body: str | None = None,
    headers: dict[str, str] | None = None,
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


def test_nothing_beside_the_pages_is_served(shared: Served) -> None:
    for path in (
        "/static/../app.py",
        "/static/..%5c..%5capp.py",
        "/rows/0/../../dataset.json",
        "/data/00000.parquet",
        "/rows/99999999999/image.jpg",
        "/rows/0/heat/99.png",
        "/sample/99999999999999999999999999",
        f"/?page={DIGITS}",
        f"/rows/0/image.jpg?side={DIGITS}",
        "/rows/5/image.jpg",  # its name leads out of the image root
        "/reviews.jsonl",
        "/review/0/1.json",
        f"/review/{DIGITS}/1.json",
    ):
        status, content = ask(shared, path)
        assert status == 404, path[:99]
        assert b"root:" not in content
        assert b"import" not in content


def test_a_link_shows_the_same_again(shared: Served, viewed: Path) -> None:
    first, other = (ask(shared, f"/?sort=random&seed={seed}&status=regions")[1] for seed in (7, 8))
    order = re.compile(rb'data-sample="[^"]*"')
    assert order.findall(first) != order.findall(other)
    with serving(viewed) as again:
        assert ask(again, "/?sort=random&seed=7&status=regions")[1] == first


@pytest.mark.parametrize(
    ("path", "headers", "status", "words"),
    [
        (
            "/",
            {"Host": "evil.example"},
            400,
            b"",
        ),  # a page elsewhere may let its own name point at this machine
        (f"/?seed={DIGITS}", {}, 400, b"This filter cannot be used"),
        ("/?where=exists(SELECT%20*%20FROM%20read_csv('/etc/passwd'))", {}, 400, b"not an SQL condition"),
        ("/?where=true);%20DROP%20TABLE%20samples;%20SELECT%20(true", {}, 400, b"not an SQL condition"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_shown_is_said(shared, path, headers, status, words) -> None:
    code, content = ask(shared, path, headers=headers)
    assert code == status
    assert words in content
    assert ask(shared, "/")[0] == 200


MARK = {"sample_ids": ["a"], "mark": "good"}
REVIEW = {"row": 0, "annotation_id": 1, "reviewer": "ann", "answer": "right"}
BOX = {**REVIEW, "answer": None, "action": "box"}
TEXT = {"Content-Type": "text/plain"}
ELSEWHERE = {"Origin": "http://evil.example"}


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("marks", MARK, TEXT, 415),
        ("marks", MARK, ELSEWHERE, 403),
        ("marks", {**MARK, "sample_ids": [1]}, {}, 400),
        ("marks", {**MARK, "sample_ids": ["a" * (LONGEST_TEXT + 1)]}, {}, 400),
        ("review", REVIEW, TEXT, 415),
        ("review", REVIEW, {"Host": "evil.example"}, 400),
        ("review", {**REVIEW, "answer": "great"}, {}, 400),
        ("review", {**REVIEW, "action": "delete"}, {}, 400),
        ("review", {**REVIEW, "reviewer": "a" * 65}, {}, 400),
        ("review", {**BOX, "box_xywh_px": [0, 0, -1, 1]}, {}, 400),
        ("review", {**REVIEW, "row": 10**40}, {}, 400),
        ("review", REVIEW, {}, 404),  # there is no such region
        ("review", {**REVIEW, "row": 99999}, {}, 404),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_what_is_sent_from_elsewhere_or_in_another_form_fails(
    shared, viewed, path, body, headers, status
) -> None:
    assert ask(shared, f"/{path}", "POST", json.dumps(body), {**JSON, **headers})[0] == status
    assert not list(viewed.glob("marks*")) + list(viewed.glob("reviews.jsonl"))


def test_what_cannot_be_saved_is_said(
    served: Served, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a stranger's dataset has a link or a folder in the place of the file."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (dataset / "reviews.jsonl").symlink_to(dataset / "dataset.json")
    review = {**REVIEW, "annotation_id": rows_of(dataset)[0]["annotations"][0]["id"]}
    status, content = ask(served, "/review", "POST", json.dumps(review), JSON)
    assert status in (409, 507)
    assert b"cannot be" in content
    assert manifest_of(dataset)
    with monkeypatch.context() as patch:
        patch.setattr("phrasebox.pipeline.viewer.app.append_marks", full)
        status, content = ask(served, "/marks", "POST", json.dumps(MARK), JSON)
    assert status == 507
    assert b"cannot be saved: No space left" in content
    assert served.viewer.pages.marks == {}
    (dataset / "marks.json").mkdir()
    assert ask(served, "/marks", "POST", json.dumps(MARK), JSON)[0] == 409
    assert not (dataset / "marks.jsonl").exists()


def test_who_reads_the_marks_sees_those_before_or_those_after(served: Served) -> None:
    """Another thread may be in the middle of the old ones."""
    viewer = served.viewer
    viewer.mark(["a", "b"], "good")
    before = viewer.pages.marks
    viewer.mark(["a", "c"], "bad")
    assert before == {"a": "good", "b": "good"}
    append_marks(viewer.pages.dataset.path, {"d": "good"})  # by another viewer
    viewer.mark(["c"], "")
    assert read_marks(viewer.pages.dataset.path) == {"a": "bad", "b": "good", "d": "good"}


def test_two_viewers_keep_each_others_marks(viewed: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(viewed, tmp_path / "dataset"))
    ids = [[f"{name}-{number}" for number in range(60)] for name in ("ann", "bob")]

    def mark(sample_ids: list[str]) -> None:
        viewer = Viewer(dataset)
        with closing(viewer.pages.index):
            for sample_id in sample_ids:
                viewer.mark([sample_id], "good")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(mark, ids))
    assert read_marks(dataset) == dict.fromkeys(chain(*ids), "good")


def test_a_page_of_another_site_gets_nothing(shared: Served) -> None:
    """A link there may hold a search that computes for long."""
    status, content = ask(shared, "/?where=true", headers={"Sec-Fetch-Site": "cross-site"})
    assert status == 403
    assert b"A page of another site" in content
    for site in ("same-origin", "none"):
        assert ask(shared, "/", headers={"Sec-Fetch-Site": site})[0] == 200


def test_a_large_body_is_refused(shared: Served) -> None:
    body = json.dumps({"sample_ids": ["x" * MOST_BODY_BYTES], "mark": "good"})
    assert ask(shared, "/marks", "POST", body, JSON)[0] == 413


def test_a_condition_that_computes_before_its_first_row_is_stopped(
    shared: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phrasebox.pipeline.dataset.condition_check.CHECK_SECONDS", 3.0)
    endless = "levenshtein(repeat('a',300000),repeat('b',300000))%20>%201"
    status, content = ask(shared, f"/?where={endless}")
    assert status == 400
    assert b"was stopped" in content
    monkeypatch.undo()
    status, content = ask(shared, "/?where=length(repeat('a',5000000000))%20>%201")
    assert status == 400
    assert b"before the first row" in content or b"not an SQL condition" in content


def test_off_this_machine_only_the_printed_address_shows_anything(viewed: Path) -> None:
    with serving(viewed, token="secret") as served:
        for path in (
            "/",
            "/static/viewer.css",
            "/rows/0/image.jpg",
            "/?token=secreT",
            "/review/state.json",
        ):
            assert ask(served, path)[0] == 403, path
        assert ask(served, "/marks", "POST", "{}", JSON)[0] == 403
        connection = http.client.HTTPConnection(urlsplit(served.url).netloc)
        connection.request("GET", "/?score_min=0.5&token=secret")
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert (answer.status, answer.headers["location"]) == (303, "/?score_min=0.5")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert ask(served, "/", headers={"Cookie": cookie.partition(";")[0]})[0] == 200
        assert ask(served, "/", headers={"Cookie": "phrasebox=other"})[0] == 403
