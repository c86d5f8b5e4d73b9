"""The viewer as a web application, and its server on this machine.

It serves the dataset and `static/`, and writes two files of the dataset, `marks.jsonl` and
`reviews.jsonl`. Templates escape the dataset's texts, and a content security policy lets nothing
run that is not in `static/`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import uvicorn
from pydantic import BaseModel, Field, ValidationError
from rich.console import Console
from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from phrasebox.pipeline.dataset.append_log import LONGEST_TEXT
from phrasebox.pipeline.dataset.index import Index
from phrasebox.pipeline.dataset.marks import MARKS, MarkName, append_marks, read_marks
from phrasebox.pipeline.dataset.rows import Row
from phrasebox.pipeline.dataset.selection import Search
from phrasebox.pipeline.pictures import heat_map_png, thumbnail
from phrasebox.pipeline.terminal import say
from phrasebox.pipeline.viewer.guard import guard
from phrasebox.pipeline.viewer.pages import Pages, grid_address
from phrasebox.pipeline.viewer.review import REGIONS, ReviewRequest, ReviewSession
from phrasebox.pipeline.viewer.sample_view import COLUMNS, HeatMaps
from phrasebox.stages.contract.errors import ConfigError, InputError, PhraseboxError, RowFault

LARGEST_SIDE_PX: Final = 2400  # of an image that is sent to the browser
WAIT_SECONDS: Final = 0.7  # for the index, before a page says that the shards are being read
END_SECONDS: Final = 0.5  # that answers may take after the end, beside a second of the server's own
MOST_MARKED: Final = 10_000  # samples in one request
MOST_BODY_BYTES: Final = 16 << 20  # of a request: the longest ids of `MOST_MARKED` samples
MOST_DIGITS: Final = 18  # of a number in an address: Python rejects thousands of digits, and no row has one

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class _NumberConvertor(IntegerConvertor):  # `{name:number}` in a route
    regex = f"[0-9]{{1,{MOST_DIGITS}}}"


register_url_convertor("number", _NumberConvertor())


Payload = TypeVar("Payload", bound=BaseModel)


class MarkRequest(BaseModel):
    """A request to give samples a mark."""

    sample_ids: list[Annotated[str, Field(max_length=LONGEST_TEXT)]] = Field(max_length=MOST_MARKED)
    mark: MarkName | Literal[""]


class Viewer:
    """The pages, the heat maps and the review of a dataset; its index is empty at first.

    Args:
        path: The dataset's folder.
        image_root: See `ImageSource`.
        settings: See `HeatMaps`.
        review: Number of regions of the review, where the viewer then starts instead of the grid.
        seed: Draws the regions to review.

    Raises:
        InputError: The folder is not a dataset.
    """

    def __init__(
        self,
        path: Path,
        image_root: str | None = None,
        settings: Sequence[str] = (),
        *,
        review: int | None = None,
        seed: int = 0,
    ) -> None:
        self.pages = Pages(path, image_root)
        self.heat = HeatMaps(self.pages.dataset, self.pages.images, settings)
        self.review_session = ReviewSession(
            dataset=self.pages.dataset,
            rows=self.pages.rows,
            log=self.pages.log,
            count=review or REGIONS,
            seed=seed,
        )
        self.opens_review = review is not None
        self._lock = threading.Lock()

    def mark(self, sample_ids: Sequence[str], mark: str) -> None:
        """Give samples a mark, or take it away with "".

        Raise OSError if it cannot be saved; then no mark changes.
        """
        with self._lock:
            path = self.pages.dataset.path
            stored = read_marks(path)  # another viewer may have added some
            new_marks = dict.fromkeys(sample_ids, mark)
            append_marks(path, new_marks)
            marks = {name: value for name, value in (stored | new_marks).items() if value}
            self.pages.marks = marks  # another dict, because other threads read the old one
            self.pages.index.mark_all(marks)


def create_app(viewer: Viewer, allowed_hosts: Sequence[str], token: str | None = None) -> Starlette:
    """Return the application.

    Browsers may call it by the names in `allowed_hosts` only, against DNS rebinding, and with the
    token, see `guard`.
    """
    routes = [
        Route(
            "/",
            _page(lambda search, request: viewer.pages.grid(search, max(1, _number(request, "page", 1)))),
        ),
        Route("/stats", _page(lambda search, _: viewer.pages.stats(search))),
        Route("/sample/{id:number}", _page(_sample)),
        Route("/rows/{row:number}/image.jpg", _image),
        Route("/rows/{row:number}/heat/{region:number}.png", _heat),
        Route("/marks", _mark, methods=["POST"]),
        Route("/review", _page(lambda *_: viewer.pages.review())),
        Route("/review/state.json", _state),
        Route("/review/{row:number}/{annotation:number}.json", _region),
        Route("/review", _review, methods=["POST"]),
        Mount("/static", StaticFiles(packages=[("phrasebox.pipeline.viewer", "static")])),
    ]
    middleware = [
        Middleware(BaseHTTPMiddleware, dispatch=_with_headers),
        Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts)),
        Middleware(BaseHTTPMiddleware, dispatch=guard(token)),
    ]
    handlers: Any = {HTTPException: _not_found, PhraseboxError: _report_error}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
    app.state.viewer = viewer
    return app


async def _with_headers(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call(request)
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _viewer(request: Request) -> Viewer:
    viewer: Viewer = request.app.state.viewer
    return viewer


def _page(view: Callable[[Search, Request], str]) -> Callable[[Request], Response]:
    """Return an endpoint that reads a search from the address and answers with a view, or with the error."""

    def answer(request: Request) -> Response:
        pages = _viewer(request).pages
        parameters = {name: value for name, value in request.query_params.items() if value.strip()}
        try:
            search = Search.model_validate(
                {name: parameters[name] for name in parameters.keys() & Search.model_fields.keys()}
            )
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
            )
            return HTMLResponse(pages.message("This filter cannot be used", problems), 400)
        try:
            needs_index = search != Search() or request.url.path == "/stats"
            if needs_index and not pages.index.wait(WAIT_SECONDS):
                return HTMLResponse(pages.progress(search), 202)
            return HTMLResponse(view(search, request))
        except ConfigError as error:
            return HTMLResponse(pages.search_problem(search, error.args[0]), 400)
        except PhraseboxError as error:
            return HTMLResponse(pages.message("This cannot be shown", str(error), search), 400)

    return answer


def _number(request: Request, name: str, default: int, limit: int = 10**12) -> int:
    """Return a whole number of the query, at most `limit`, or the default.

    Raise HTTPException for a long one.
    """
    text = request.query_params.get(name, "")
    if not (text.isascii() and text.isdigit()):
        return default
    if len(text) > MOST_DIGITS:
        raise HTTPException(404)
    return min(int(text), limit)


def _sample(search: Search, request: Request) -> str:
    pages = _viewer(request).pages
    image_id = request.path_params["id"]
    row = _number(request, "row", -1)
    if pages.rows.rows_at([row], ["id"]) != [{"id": image_id}]:  # a link from elsewhere: only the id counts
        pages.index.wait(60)
        if (indexed_row := pages.index.row_of(image_id)) is None:
            raise HTTPException(404)
        row = indexed_row
    at = _number(request, "at", -1)
    return pages.sample(search, row, None if at < 0 else at)


def _image(request: Request) -> Response:
    pages = _viewer(request).pages
    side = max(16, _number(request, "side", 640, LARGEST_SIDE_PX))
    row = _row_at(request, ["file_name", *(["image"] if pages.dataset.has_images else [])])
    try:
        content = thumbnail(pages.images.load(row), side, pages.images.limits)
    except RowFault as fault:
        hint = " (phrasebox inspect --images DIR says where the images are)"
        return JSONResponse(
            {"error": f"{fault}{hint if fault.error.reason == 'missing_image' else ''}"}, 404
        )
    return Response(content, media_type="image/jpeg")


def _heat(request: Request) -> Response:
    heat = _viewer(request).heat
    row = _row_at(request, [*COLUMNS, *heat.columns])
    region = request.path_params["region"]
    if region >= len(row["annotations"]):
        raise HTTPException(404)
    heat_map = heat.of(row).get(row["annotations"][region]["phrase"])
    if heat_map is None:
        raise InputError("the captions no longer hold the phrase")
    png = heat_map_png(heat_map.values, shift_cells=heat_map.shift_cells)
    return Response(png, media_type="image/png")


def _row_at(request: Request, columns: Sequence[str]) -> Row:
    rows = _viewer(request).pages.rows.rows_at([request.path_params["row"]], columns)
    if not rows:
        raise HTTPException(404)
    return rows[0]


async def _read_payload(request: Request, kind: type[Payload], expected: str) -> Payload:
    """Return the object of a request.

    Raise HTTPException for one from another origin, or of another form.
    """
    # Pages of other origins cannot send this type without a preflight request, which this server
    # never grants.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected JSON")
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(403, "the request comes from another origin")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY_BYTES:
            raise HTTPException(413, f"expected at most {MOST_BODY_BYTES >> 20} MB")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(400, f"expected {expected}") from error


async def _mark(request: Request) -> Response:
    expected = (
        f"{{sample_ids, mark}}: at most {MOST_MARKED} ids, and one of {', '.join(MARKS)}, or an empty mark"
    )
    payload = await _read_payload(request, MarkRequest, expected)
    try:
        await asyncio.to_thread(_viewer(request).mark, payload.sample_ids, payload.mark)
    except OSError as error:
        return JSONResponse({"error": f"the mark cannot be saved: {error.strerror}"}, 507)
    return JSONResponse({"marks": len(_viewer(request).pages.marks)})


async def _review(request: Request) -> Response:
    payload = await _read_payload(
        request, ReviewRequest, "{row, annotation_id, reviewer, answer|action, box_xywh_px}"
    )
    try:
        count = await asyncio.to_thread(_viewer(request).review_session.store, payload)
    except OSError as error:
        return JSONResponse({"error": f"it cannot be saved: {error.strerror or error}"}, 507)
    except ValidationError:
        return JSONResponse({"error": "the region's phrase or box is damaged"}, 409)
    if not count:
        return JSONResponse({"error": "there is no such region"}, 404)
    return JSONResponse({"saved": count})


def _state(request: Request) -> Response:
    return JSONResponse(_viewer(request).review_session.state(request.query_params.get("reviewer", "")))


def _region(request: Request) -> Response:
    region = _viewer(request).review_session.region(
        request.path_params["row"], request.path_params["annotation"]
    )
    if region is None:
        raise HTTPException(404)
    return JSONResponse(region)


def _report_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 409)


def _not_found(request: Request, error: Exception) -> Response:
    code = error.status_code if isinstance(error, HTTPException) else 500
    if request.method == "POST" and isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, code)
    return HTMLResponse(_viewer(request).pages.message("There is no such page", request.url.path), code)


def serve(
    viewer: Viewer, console: Console, search: Search, *, host: str, port: int, open_browser: bool
) -> None:
    """Serve a viewer until it is interrupted, and print the address of a search in it, or of the review page.

    Port 0 takes any free port. Raise ConfigError if the search or the address cannot be used.
    """
    try:
        viewer.pages.index.check(search)
        listener = _listen(host, port)
    except ConfigError:
        viewer.pages.index.close()
        raise
    name = f"[{host}]" if ":" in host else host
    page = "/review" if viewer.opens_review else grid_address(search, 1)
    address = f"http://{name}:{listener.getsockname()[1]}{page}"
    loopback = is_loopback(host)
    token = None if loopback else secrets.token_urlsafe(16)
    if token is not None:
        address += f"{'&' if '?' in page else '?'}token={token}"
    app = create_app(viewer, ["127.0.0.1", "localhost", "[::1]", host] if loopback else ["*"], token)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    threading.Thread(target=_build, args=(viewer.pages.index,), daemon=True).start()
    say(console, f"{viewer.pages.dataset.path}: {address}  (Ctrl-C ends it)")
    if not loopback:
        say(
            console,
            "everyone who can reach this machine and knows this address can look at the dataset, mark samples and "
            "review regions. The address is not encrypted on its way",
        )
    if open_browser:
        threading.Timer(0.3, webbrowser.open, [address]).start()
    earlier = threading.enumerate()
    with suppress(KeyboardInterrupt):  # uvicorn has ended orderly and passes it on
        server.run(sockets=[listener])
    _end_threads(viewer.pages.index, earlier)


def _end_threads(index: Index, earlier: Sequence[threading.Thread]) -> None:
    """End the process where an answer is still being computed, which nobody waits for.

    earlier: Threads that do not count, because they were there before the server.
    """
    threads = [thread for thread in threading.enumerate() if not thread.daemon and thread not in earlier]
    deadline = time.monotonic() + END_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        index.delete_files()
        os._exit(0)


def _build(index: Index) -> None:
    with suppress(InputError):  # the pages show the error, which `Index.wait` raises
        index.build()


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    except OSError as error:
        raise ConfigError(f"no address {host}: {error.strerror}", key="host") from error
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}; 0 takes any free port", key="port"
        ) from error
