"""`phrasebox inspect`: the viewer's server on this machine."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from rich.console import Console

from pipeline.viewer.app import Viewer, create_app
from pipeline.viewer.heat import HeatMaps
from pipeline.viewer.pages import Links, open_pages
from stages.contract.errors import ConfigError, InputError
from stages.dataset.index import Index
from stages.dataset.selection import Search


def make_viewer(path: Path, image_root: str | None = None, settings: Sequence[str] = ()) -> Viewer:
    """The viewer of a dataset, with an empty index. For the arguments see `serve`. Raises InputError."""
    pages = open_pages(path, image_root, Links())
    return Viewer(pages=pages, heat=HeatMaps(pages.dataset, pages.images, settings))


def serve(
    path: Path,
    console: Console,
    search: Search,
    *,
    host: str,
    port: int,
    open_browser: bool,
    image_root: str | None = None,
    settings: Sequence[str] = (),
) -> None:
    """Serve the viewer until it is interrupted.

    Args:
        path: The dataset's folder.
        console: Where the address is printed.
        search: What the printed address shows first.
        host: Address to listen on.
        port: Port to listen on; 0 takes any free one.
        open_browser: Whether to open the browser too.
        image_root: See `ImageSource`.
        settings: See `HeatMaps`.

    Raises:
        InputError: The folder is not a dataset.
        ConfigError: The address cannot be used.
    """
    viewer = make_viewer(path, image_root, settings)
    try:
        viewer.pages.index.check(search)
        listening = _listen(host, port)
    except ConfigError:
        viewer.pages.index.close()
        raise
    address = f"http://{_printed(host)}:{listening.getsockname()[1]}{Links().page(search, 1)}"
    loopback = is_loopback(host)
    app = create_app(viewer, ["127.0.0.1", "localhost", "[::1]", host] if loopback else ["*"])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
    threading.Thread(target=_build, args=(viewer.pages.index,), daemon=True).start()
    console.print(f"{viewer.pages.dataset.path}: {address}  (Ctrl-C ends it)", soft_wrap=True)
    if not loopback:
        console.print("everyone who can reach this machine can look at the dataset and mark samples", soft_wrap=True)
    if open_browser:
        threading.Timer(0.3, webbrowser.open, [address]).start()
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn has ended orderly and passes it on
        return


def _build(index: Index) -> None:
    try:
        index.build()
    except InputError:
        return  # the pages show the error, which `Index.wait` raises


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        info: Any = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ConfigError(f"--host: no address {host}: {error.strerror}") from error
    listening = socket.socket(info[0], info[1], info[2])
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(info[4])
        listening.listen()
    except OSError as error:
        listening.close()
        hint = "" if error.errno == errno.EADDRNOTAVAIL else "; --port 0 takes any free port"
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}{hint}") from error
    return listening


def _printed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
