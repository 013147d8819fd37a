"""Who may ask the page's server: only pages of this very server, on this computer, that know the secret link.

A web site that is open in another tab can send requests to any local port. It is kept out four times over: it does not
know the token in the path, its requests carry its own `Origin` (or `Sec-Fetch-Site`), a name of its own that it points
to 127.0.0.1 (DNS rebinding) is no name of a loopback address, and there is no cookie that it could ride on.
"""

from __future__ import annotations

import hmac
import re
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST = 256 * 1024
"""Bytes of a request's body; an action is a few hundred."""

LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)
"""Values of the Host header that are names of this computer; the port may be another one's end of an ssh tunnel."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""On every response. The page runs its own scripts only and asks nobody else; nothing can be framed or embedded."""


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.response = PlainTextResponse(text + "\n", status, {"Connection": "close"})


class Guard:
    """Lets a request through to `app`, with the token taken off its path, if it is one of the page's own.

    Args:
        app: answers the requests that are let through.
        token: the first part of the path of every request.
        once: a path that leads to the page one single time. A browser is started with it: other users of this computer
            see the arguments of programs.
    """

    def __init__(self, app: ASGIApp, token: str, once: str | None = None) -> None:
        self._app, self._token, self._once = app, token, once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            inside = self._checked(scope)
            if isinstance(inside, Response):
                await inside(scope, receive, sealed)
                return
            body = await _read(Headers(scope=scope), receive) if scope["method"] == "POST" else b""
        except _Refused as refused:
            await refused.response(scope, receive, sealed)
            return
        await self._app({**scope, "path": inside, "root_path": ""}, _replay(body, receive), sealed)

    def _checked(self, scope: Scope) -> str | Response:
        """The path behind the token, or the answer to a request for the link without its last slash."""
        headers, method = Headers(scope=scope), scope["method"]
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not LOOPBACK.fullmatch(host):
            raise _Refused(403, "This server is only for this computer: open it as http://127.0.0.1 or localhost.")
        if method not in ("GET", "HEAD", "POST"):
            raise _Refused(405, "GET, HEAD and POST only.")
        # From the bytes on the wire: a decoded %2F must not pass for a slash.
        first, slash, rest = scope["raw_path"].partition(b"?")[0].lstrip(b"/").partition(b"/")
        if self._once and method == "GET" and hmac.compare_digest(first, self._once.encode()):
            self._once = None
            return RedirectResponse(f"/{self._token}/", 303)
        if not hmac.compare_digest(first, self._token.encode()):
            raise _Refused(403, "This is no valid link: open the one that `segshift annotate` printed.")
        site = headers.get("sec-fetch-site", "same-origin")
        to_page = method == "GET" and not rest and headers.get("sec-fetch-mode") == "navigate"
        if site not in ("same-origin", "none") and not to_page:
            raise _Refused(403, "Requests of other sites are refused.")
        if method == "POST":
            if headers.get("origin") != f"http://{host}":
                raise _Refused(403, "Posts from other origins are refused.")
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise _Refused(415, "Posts are JSON.")
        if not slash:
            return RedirectResponse(f"/{self._token}/", 307)
        return "/" + unquote(rest.decode("latin-1"))


async def _read(headers: Headers, receive: Receive) -> bytes:
    """The body of a request, of which no more than `LARGEST` bytes are ever held."""
    told = headers.get("content-length", "0")
    too_much = _Refused(413, f"A request has at most {LARGEST} bytes.")
    if not told.isdigit() or int(told) > LARGEST:
        raise too_much
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, "The request ended early.")
        body += message.get("body", b"")
        if len(body) > LARGEST:
            raise too_much
        more = message.get("more_body", False)
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, as the application expects it."""
    parts = [body]

    async def again() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await receive()

    return again
