"""What the server lets a browser ask for: its own uploads and the page, in its own name, and nothing else."""

import asyncio
import json
import os
import socket
import threading
import time
from urllib.parse import quote

import pytest

from mecap_jax.app import guard
from mecap_jax.app import server as server_module
from mecap_jax.app.guard import COOKIE, Guard
from mecap_jax.app.server import own_names

HOST = (b"host", b"127.0.0.1:7860")


class Server:
    """The guard around an application that stores one upload and remembers what reached it."""

    def __init__(self, uploads):
        self.uploads, self.reached, self.name = uploads, [], "a.wav"
        self.guard = Guard(self.answer, uploads, frozenset({"127.0.0.1", "localhost"}))

    async def answer(self, scope, receive, send):
        self.reached.append(scope["path"])
        body = b"{}"
        if scope["path"] == "/gradio_api/upload":
            while (await receive()).get("more_body"):
                pass
            place = self.uploads / "x" / self.name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(b"sound")
            body = json.dumps([str(place)]).encode()
        if scope["method"] == "POST" and scope["path"] != "/gradio_api/upload":
            body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body[:1], "more_body": True})
        await send({"type": "http.response.body", "body": body[1:]})

    def ask(self, path, browser="", method="GET", body=b"", host=HOST, origin=None, at="127.0.0.1"):
        """(status, cookies, body) of an answer."""
        cookie = [(b"cookie", f"{COOKIE}={browser}".encode())] if browser else []
        scope = {"type": "http", "method": method, "path": path, "headers": [host, *cookie], "server": (at, 7860)}
        scope["headers"] += [(b"origin", origin)] if origin is not None else []
        sent, parts = [], [body[:5], body[5:]]

        async def receive():
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message):
            sent.append(message)

        asyncio.run(self.guard(scope, receive, send))
        headers = dict(sent[0]["headers"])
        assert b"default-src 'self'" in headers.get(b"content-security-policy", b"") or sent[0]["status"] == 403
        text = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], headers.get(b"set-cookie", b"").decode(), text


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path)


ANNA, BEN = "anna" * 8, "ben" * 8


def call(*files, at="http://127.0.0.1:7860"):
    kind = {"_type": "gradio.FileData"}
    data = [{"path": str(file), "url": f"{at}/gradio_api/file={quote(str(file))}", "meta": kind} for file in files]
    return json.dumps({"data": [1, "text", data], "session_hash": "abc"}).encode()


def test_an_upload_belongs_to_the_browser_that_sent_it(server):
    place = json.loads(server.ask("/gradio_api/upload", ANNA, "POST")[2])[0]
    assert server.ask(f"/gradio_api/file={place}", ANNA)[0] == 200
    assert server.ask(f"/gradio_api/file={place}", BEN)[0] == 404 == server.ask(f"/gradio_api/file={place}")[0]
    assert server.ask("/gradio_api/queue/join", ANNA, "POST", call(place)) == (200, "", call(place))
    assert server.ask("/gradio_api/queue/join", BEN, "POST", call(place))[0] == 403
    alone = json.dumps({"data": [place]}).encode()  # as the camera names its recording
    assert server.ask("/gradio_api/queue/join", ANNA, "POST", alone)[0] == 200
    assert server.ask("/gradio_api/queue/join", BEN, "POST", alone)[0] == 403


@pytest.mark.parametrize("name", ["my clip (1).wav", "很长的名字.wav", "100% sad.wav", "=a'b&c;d.wav", "a#b?c.wav"])
def test_an_upload_may_have_any_name(server, name):
    server.name = name
    place = json.loads(server.ask("/gradio_api/upload", ANNA, "POST")[2])[0]
    assert server.ask("/gradio_api/queue/join", ANNA, "POST", call(place))[0] == 200
    assert server.ask("/gradio_api/queue/join", BEN, "POST", call(place))[0] == 403
    assert server.ask("/gradio_api/queue/join", ANNA, "POST", call(place, at="http://evil.example"))[0] == 403


def test_files_that_nobody_has_sent_are_refused(server):
    place = json.loads(server.ask("/gradio_api/upload", ANNA, "POST")[2])[0]
    secret = server.uploads.parent / "secret.txt"
    secret.write_text("secret")
    for name in (
        secret,
        "/etc/passwd",
        f"{server.uploads}/../{secret.name}",
        "a\0b",
        "https://example.org/a.wav",
        None,
    ):
        assert server.ask(f"/gradio_api/file={name}", ANNA)[0] == 404
        assert server.ask("/gradio_api/queue/join", ANNA, "POST", call(name))[0] == 403
    for hidden in (
        {"url": "https://example.org/a.wav"},
        {"deep": [{"path": "/etc/passwd"}]},
        {"path": place, "url": "https://a.b"},
        {"meta": {"_type": "x"}},
    ):
        assert server.ask("/gradio_api/queue/join", ANNA, "POST", json.dumps([hidden]).encode())[0] == 403
    assert server.ask("/gradio_api/queue/join", ANNA, "POST", b"[" * 100_000)[0] == 403
    assert server.ask("/gradio_api/queue/join", ANNA, "POST", b" " * 5_000_000)[0] == 413
    assert server.ask("/gradio_api/queue/join", ANNA, "POST", call())[0] == 200
    assert server.reached == ["/gradio_api/upload", "/gradio_api/queue/join"]


def test_an_upload_has_a_largest_size(server, monkeypatch):
    monkeypatch.setattr(guard, "LARGEST_UPLOAD", 8)
    assert server.ask("/gradio_api/upload", ANNA, "POST", b"x" * 9)[0] == 413 and not (server.uploads / "x").exists()
    assert server.ask("/gradio_api/upload", ANNA, "POST", b"x" * 8)[0] == 200


def test_what_a_broken_upload_leaves_is_deleted(tmp_path, monkeypatch):
    for name in ("old", "new", "directory/old"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (0, 0) if path.name == "old" else None)
    (tmp_path / "link").symlink_to("directory/old")
    monkeypatch.setattr(server_module, "UPLOADS_KEPT", (0.01, 1800))
    ended = threading.Event()
    sweeping = threading.Thread(target=server_module._sweep, args=(tmp_path, ended))
    sweeping.start()
    for _ in range(500):
        if not (tmp_path / "old").exists():
            break
        time.sleep(0.01)
    ended.set()
    sweeping.join(5)
    assert not sweeping.is_alive()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "link", "new"]
    assert (tmp_path / "directory" / "old").exists()


def test_only_the_page_and_its_calls_are_there(server):
    assert [server.ask(path)[0] for path in ("/", "/assets/x.js", "/gradio_api/queue/data", "/theme.css")] == [200] * 4
    for path in ("proxy=https://example.org", "component_server", "run/caption", "call/caption", "dev/reload"):
        assert server.ask(f"/gradio_api/{path}")[0] == 404
    for path in ("/runs", "/monitoring", "/file=/etc/passwd"):
        assert server.ask(path)[0] == 404
    for host in (b"evil.example", b"127.0.0.1.evil.example:7860", b""):
        assert server.ask("/", host=(b"host", host))[0] == 403
    assert server.ask("/", host=(b"host", b"localhost:1"))[0] == 200


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_pages_may_not_ask(server, method):
    def ask(origin):
        return server.ask("/gradio_api/queue/join", ANNA, method, call(), origin=origin)[0]

    for origin in (b"http://localhost:3000", b"http://127.0.0.1", b"https://evil.example", b"null", b""):
        assert ask(origin) == 403
    assert not server.reached
    assert ask(b"http://127.0.0.1:7860") == ask(None) == 200
    same = {"host": (b"host", b"LocalHost:7860"), "origin": b"http://localhost:7860"}
    assert server.ask("/", ANNA, **same)[0] == 200


def test_a_server_for_others_is_known_under_its_own_names_alone(tmp_path):
    server = Server(tmp_path)
    server.guard = Guard(server.answer, tmp_path, own_names("0.0.0.0"))
    for host in (socket.gethostname(), "localhost", "192.0.2.7"):
        assert server.ask("/", host=(b"host", f"{host}:7860".encode()), at="192.0.2.7")[0] == 200
    for host in (b"evil.example:7860", b"192.0.2.8", b""):
        assert server.ask("/", host=(b"host", host), at="192.0.2.7")[0] == 403
    assert socket.gethostname().lower() not in own_names("127.0.0.1") - {"localhost"}


def test_a_browser_gets_one_cookie_and_its_uploads_go_with_its_last_page(server):
    cookie = server.ask("/")[1]
    assert cookie.startswith(f"{COOKIE}=") and "HttpOnly; SameSite=Strict" in cookie
    browser = cookie.partition("=")[2].partition(";")[0]
    assert server.ask("/", browser)[1] == "" and server.ask("/", "short")[1] != ""
    place = json.loads(server.ask("/gradio_api/upload", browser, "POST")[2])[0]
    with server.guard._open_page(browser):
        server.ask("/gradio_api/heartbeat/one", browser)  # another page, which closes
        assert (server.uploads / "x" / "a.wav").exists()
        server.ask("/gradio_api/heartbeat/two", BEN)
        assert (server.uploads / "x" / "a.wav").exists()
    assert not (server.uploads / "x").exists()
    assert server.ask(f"/gradio_api/file={place}", browser)[0] == 404
