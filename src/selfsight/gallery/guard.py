"""Who may talk to the page: this machine, or who has the token; no other site's page, and nothing that is too large."""

import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST = 32 << 20
"""Bytes of a request."""
NAME_AND_PORT = re.compile(r"(\[[0-9a-f:.]+\]|[^][:/@]+)(?::\d*)?")
"""A host as a request names it."""
MARK = "x-selfsight"
"""A header that a form or an image on another site's page cannot send."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-src 'self'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """ASGI middleware: refuses what is not from the page itself, and sends headers that keep browsers strict."""

    def __init__(self, app: ASGIApp, host: str, port: int, token: str | None) -> None:
        """Serve `app` at this host and port; with a token only those who have shown it once."""
        self.app, self.token = app, token
        self.cookie = f"selfsight-{port}"  # browsers send a cookie to all ports of a host
        local = {"localhost", "127.0.0.1", "[::1]"}
        own = {f"[{host}]" if ":" in host else host}
        # Elsewhere the names of this machine aren't known; the token, which no other site knows, stands in for them.
        # Whatever the port: ssh and editors forward another one, and it is the name that a foreign page can't have.
        self.hosts = local | own if token is None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the page answer."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            status, words = refusal
            await PlainTextResponse(words, status, headers=HEADERS)(scope, receive, send)
            return
        if self.token is not None and not self._known(headers):
            query = dict(part.partition("=")[::2] for part in scope["query_string"].decode("latin-1").split("&"))
            if scope["path"] == "/" and hmac.compare_digest(query.get("token", "").encode(), self.token.encode()):
                answer = RedirectResponse("/", 303, headers=HEADERS)
                # Not strict: that is not sent where the link was opened from another page, a mail say.
                answer.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
                await answer(scope, receive, send)
            else:
                words = "open the address that selfsight printed, with its token"
                await PlainTextResponse(words, 401, headers=HEADERS)(scope, receive, send)
            return
        await self.app(scope, limited(receive), strict(send))

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "").lower()
        name = NAME_AND_PORT.fullmatch(host)
        if self.hosts is not None and (name is None or name[1] not in self.hosts):
            return 403, "this page is served to this machine only"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            return 403, "a page of another origin may not ask"
        link = scope["method"] == "GET" and scope["path"] == "/"  # following one to the page is fine
        if not link and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "a page of another site may not ask"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "only GET and POST"
        if scope["method"] == "POST" and MARK not in headers:
            return 403, "only the page itself may change something"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST:
            return 413, f"more than {LARGEST >> 20} MB"
        return None

    def _known(self, headers: Headers) -> bool:
        # Browsers send the cookies of all ports of a host: one that is written oddly must not hide ours.
        shown = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
        return hmac.compare_digest(shown.encode(), (self.token or "").encode())


class TooLargeError(Exception):
    """A request went on after LARGEST bytes."""


def limited(receive: Receive) -> Receive:
    """Stop a request that is longer than it said, or did not say how long it is."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > LARGEST:
            raise TooLargeError
        return message

    return counted


def strict(send: Send) -> Callable[[Message], Awaitable[None]]:
    """Add the headers to what is sent."""

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return with_headers


def is_local(host: str) -> bool:
    """Return whether only this machine can reach a server bound to this host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
