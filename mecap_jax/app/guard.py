"""Who may ask the page's server for what: uploads belong to the browser that sent them, and the rest is the page alone.

An ASGI application around Gradio's. Gradio serves whatever lies in its upload directory to anybody who knows the path,
fetches addresses that a request names as a file, and has routes that this page does not need.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COOKIE = "mecap_browser"
_API = "/gradio_api"
_PAGE = ("/assets/", "/static/", "/svelte/", "/theme.css", "/config", "/favicon.ico", "/manifest.json", "/pwa_icon")
_CALLS = ("/queue/", "/upload", "/heartbeat/", "/cancel", "/reset", "/startup-events", "/info", "/app_id", "/theme.css")
UPLOADS_KEPT = (60, 1800)  # seconds: looked through every so many; older ones go, also under an open page
LARGEST_UPLOAD = 2**31  # bytes of files that are sent together
_LARGEST_CALL = 2**22  # bytes: what a person can type or choose; files come another way
# Nothing is loaded from elsewhere, and no other page may show this one in a frame.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)


class Guard:
    """Lets through what a browser may ask for.

    Args:
      app: Gradio's application.
      uploads: the directory of its uploads.
      hosts: the names under which the server may be asked, beside the address that a request has come to, so that no
        other site can pretend to be it (DNS rebinding).
    """

    def __init__(self, app: Any, uploads: Path, hosts: frozenset[str]):
        self._app, self._uploads, self._hosts = app, uploads.resolve(), hosts
        self._owners: dict[Path, set[str]] = collections.defaultdict(set)
        self._pages: collections.Counter[str] = collections.Counter()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, known = scope["path"], _browser(headers.get("cookie", ""))
        browser = known or secrets.token_urlsafe(16)
        host, origin = headers.get("host", ""), headers.get("origin")
        address, _ = scope.get("server") or ("", None)
        if _host(host) not in self._hosts | {address}:
            return await _refuse(send, 403, "the page is not known under this name")
        # Gradio lets pages of any other port of this machine ask, too.
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            return await _refuse(send, 403, "another page may not ask for this one")
        send = _with_headers(send, None if known else browser)
        if path == "/" or path.startswith(_PAGE):
            return await self._app(scope, receive, send)
        call = path.removeprefix(_API)
        if call == path:
            return await _refuse(send, 404, "there is no such page")
        if call.startswith("/file="):
            if browser not in self._owners.get(self._place(unquote(call.removeprefix("/file="))), ()):
                return await _refuse(send, 404, "there is no such file")
            return await self._app(scope, receive, send)
        if not call.startswith(_CALLS):
            return await _refuse(send, 404, "there is no such page")
        if call == "/upload":
            try:
                return await self._app(scope, _up_to(LARGEST_UPLOAD, receive), self._noting_uploads(send, browser))
            except _TooMuch:
                return await _refuse(send, 413, "that is too much")
        if call.startswith("/heartbeat/"):
            with self._open_page(browser):
                return await self._app(scope, receive, send)
        if scope["method"] == "POST":
            body = await _read(receive, _LARGEST_CALL)
            if body is None:
                return await _refuse(send, 413, "that is too much")
            if not self._may_name(body, browser, host):
                return await _refuse(
                    send, 403, "this browser has not sent that file, or it was deleted since: choose it again"
                )
            receive = _again(body, receive)
        return await self._app(scope, receive, send)

    def _place(self, name: str) -> Path | None:
        """The upload that a name stands for; None where it is none."""
        try:
            path = Path(name).resolve()
        except (OSError, ValueError):
            return None
        return path if path.is_relative_to(self._uploads) else None

    def _may_name(self, body: bytes, browser: str, host: str) -> bool:
        """Whether all files that a call names are uploads of this browser. Addresses are none."""
        try:
            named = list(_files(json.loads(body or b"null"), self._uploads.name, host))
        except (ValueError, RecursionError):
            return False
        return all(isinstance(name, str) and browser in self._owners.get(self._place(name), ()) for name in named)

    def _noting_uploads(self, send, browser: str):
        """The same, and what the server says it has stored belongs to this browser."""
        parts: list[bytes] = []

        async def noting(message):
            if message["type"] == "http.response.body":
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    with contextlib.suppress(ValueError):
                        for name in json.loads(b"".join(parts)):
                            if (place := self._place(str(name))) is not None:
                                self._owners[place].add(browser)
            await send(message)

        return noting

    @contextlib.contextmanager
    def _open_page(self, browser: str) -> Iterator[None]:
        """For as long as a page is open; with the last one of a browser go its uploads."""
        self._pages[browser] += 1
        try:
            yield
        finally:
            self._pages[browser] -= 1
            if not self._pages[browser]:
                del self._pages[browser]
                self._forget(browser)

    def _forget(self, browser: str) -> None:
        for place, owners in list(self._owners.items()):
            owners.discard(browser)
            if not owners:
                del self._owners[place]
                with contextlib.suppress(OSError):
                    place.unlink()
                    place.parent.rmdir()


def _files(value: Any, uploads: str, host: str) -> Iterator[Any]:
    """What stands for files in a call to `host`: the paths of all that looks like a file of Gradio's, an address that
    is not that of the path beside it, and whatever text has the name of the directory of uploads in it."""
    if isinstance(value, dict):
        kind, path, address = value.get("meta"), value.get("path"), value.get("url")
        if "path" in value or "url" in value or (isinstance(kind, dict) and "_type" in kind):
            yield path
            if address is not None and not _is_address_of(str(address), path, host):
                yield address
        for key, item in value.items():
            if key not in ("path", "url"):
                yield from _files(item, uploads, host)
    elif isinstance(value, list):
        for item in value:
            yield from _files(item, uploads, host)
    elif isinstance(value, str) and uploads in value:
        yield value


def _is_address_of(address: str, path: Any, host: str) -> bool:
    """Whether an address is that of an upload here; it has %20 for a blank, and the like for most other characters."""
    parts = urlsplit(address)
    here = parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
    return here and unquote(parts.path) == f"{_API}/file={path}" and not parts.query


def _browser(cookies: str) -> str:
    try:
        found = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found and len(found.value) >= 16 else ""


def _host(header: str) -> str:
    host, _, port = header.rpartition(":")
    return (host if port.isdecimal() else header).strip("[]").lower()


def _with_headers(send, browser: str | None):
    """The same with our policy, and with a cookie for a browser that has none."""

    async def sending(message):
        if message["type"] == "http.response.start":
            added = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]
            if browser is not None:
                added.append((b"set-cookie", f"{COOKIE}={browser}; HttpOnly; SameSite=Strict; Path=/".encode()))
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return sending


async def _refuse(send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": reason}, allow_nan=False).encode()})


async def _read(receive, most: int) -> bytes | None:
    """The body of a request; None where it is longer than `most` bytes, or breaks off."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > most:
            return None
    return body


class _TooMuch(Exception):
    """A request is longer than it may be."""


def _up_to(most: int, receive):
    """The same for at most so many bytes. What is said of their number beforehand does not count."""
    seen = 0

    async def receiving():
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise _TooMuch
        return message

    return receiving


def delete_old(directory: Path, seconds: float) -> None:
    """Deletes the plain files in a directory, not those below it, that nobody has written to for so long."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False) and time.time() - entry.stat().st_mtime > seconds:
                    os.unlink(entry.path)


def _again(body: bytes, receive):
    """Gives a body that was read once more, and then what comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving():
        return waiting.pop() if waiting else await receive()

    return receiving
