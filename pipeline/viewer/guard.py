"""Which requests the viewer answers at all, before it looks at what they want."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from secrets import compare_digest
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

Call = Callable[[Request], Awaitable[Response]]

COOKIE: Final = "phrasebox"


def guard(token: str | None) -> Callable[[Request, Call], Awaitable[Response]]:
    """Return a middleware that refuses what a page of another site asks for, and whoever does not know the token.

    The address that was printed holds the token. It becomes a cookie, so that the pages' links need none.

    token: None where only this machine reaches the viewer.
    """

    async def answer(request: Request, call: Call) -> Response:
        if request.headers.get("sec-fetch-site") == "cross-site":
            text = "A page of another site asks for this. To look at it, put the address into a new tab.\n"
            return PlainTextResponse(text, 403)
        if token is None or _equal(request.cookies.get(COOKIE), token):
            return await call(request)
        if not _equal(request.query_params.get("token"), token):
            text = "The viewer prints an address with a token when it starts. Open that one.\n"
            return PlainTextResponse(text, 403)
        address = request.url.remove_query_params("token")
        response = RedirectResponse(
            f"{address.path}?{address.query}" if address.query else address.path, 303
        )
        response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return response

    return answer


def _equal(given: str | None, token: str) -> bool:
    return given is not None and compare_digest(given.encode(), token.encode())
