"""A dataset with everything a viewer may meet, served on loopback, and a real browser to look at it."""

import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.run.run import run
from phrasebox.pipeline.viewer.app import Viewer, create_app
from tests.build.datasets import copy_of
from tests.build.files import read_lines
from tests.pipeline.commands.evaluated import QUIET, config_of

HOSTILE = (
    'A <script>window.hacked = 1</script> red car and "><img src=x onerror="window.hacked = 2"> a blue fish'
)
"""A caption that would like to run."""

SCENES = 14

PATIENCE_MS = 600_000
"""How long the browser waits for what must come: a bound against hanging, which no busy machine reaches."""

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="session")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of drawn scenes by the real pipeline, with hostile and broken rows. Only to be read: see `dataset`."""
    folder = tmp_path_factory.mktemp("viewed")
    write_scenes(folder, SCENES, seed=11)
    rows = read_lines(folder / "captions.jsonl")
    rows[0]["caption"] = HOSTILE
    hebrew = "סוס ליד a red house"  # noqa: RUF001  it is Hebrew
    captions = [rows[1].pop("caption"), "a red bird under a green tree", hebrew]
    rows[1] = {**rows[1], "captions": captions}
    rows[2]["caption"] = ""
    rows[3]["image"] = "<b>missing</b>.jpg"
    rows[4]["image"] = "broken.jpg"
    rows[5]["image"] = "../../etc/passwd"
    rows[6]["caption"] = "beautiful!"
    rows[7]["id"] = "<i>x</i>' OR 1=1 --"
    (folder / "images" / "broken.jpg").write_bytes(b"<html>no picture</html>")
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    regions = {"min_presence": None}  # hostile captions have regions, too
    output = {"path": str(folder / "dataset"), "rows_per_file": 8}
    return run(config_of(folder, output=output, regions=regions), QUIET)


@pytest.fixture
def dataset(viewed: Path, tmp_path: Path) -> Path:
    """A copy of the dataset that a test may mark."""
    return copy_of(viewed, tmp_path)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running viewer. url: no slash at its end."""

    url: str
    viewer: Viewer


@pytest.fixture(scope="session")
def shared(viewed: Path) -> Iterator[Served]:
    """The viewer of the dataset that nobody marks."""
    with serving(viewed) as running:
        yield running


@pytest.fixture
def served(dataset: Path) -> Iterator[Served]:
    """The viewer of a copy."""
    with serving(dataset) as running:
        yield running


@contextmanager
def serving(
    dataset: Path,
    *,
    build: bool = True,
    image_root: Path | None = None,
    settings: Sequence[str] = (),
    token: str | None = None,
) -> Iterator[Served]:
    """Serve a dataset on a free port of this machine while the block runs."""
    viewer = Viewer(dataset, None if image_root is None else str(image_root), settings)
    if build:
        viewer.pages.index.build()
    app = create_app(viewer, ["127.0.0.1"], token)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Served(url=f"http://127.0.0.1:{port}", viewer=viewer)
    finally:
        server.should_exit = True
        thread.join()
        viewer.pages.index.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path is not None, "the tests of pages need Chromium: apt-get install chromium"
    options = [
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
    ]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=options, timeout=PATIENCE_MS)
        yield started
        started.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser without cookies and with a patient clock."""
    with browser.new_context(viewport={"width": 1300, "height": 900}) as opened:
        opened.set_default_timeout(PATIENCE_MS)
        yield opened


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A fresh page; an error of a script, or a resource that is refused, fails the test that saw it."""
    opened = context.new_page()
    wrong: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrong.append(message.text)

    opened.on("console", note)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
    yield opened
    assert wrong == []


def pictures_are_there(page: Page) -> None:
    """Wait for all pictures in sight; not by `wait_for_function`, which the pages' policy forbids."""
    broken = "[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src)"
    while page.evaluate(broken):
        page.mouse.wheel(0, 300)  # those below are loaded when one comes near
        page.wait_for_timeout(50)
