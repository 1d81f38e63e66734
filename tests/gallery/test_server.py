import asyncio
import os
import re
import signal
import socket
import sqlite3
import threading
import time
from contextlib import suppress
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Message

from selfsight.gallery.serve import GalleryConfig, serve
from selfsight.gallery.server import create_app
from selfsight.gallery.store import Store
from tests.gallery.galleries import make_photos, make_run, small_gallery


def test_the_event_loop_never_waits_for_the_labels(
    tmp_path: Path, photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_gallery(tmp_path, photo, 8) as gallery:
        routes = create_app(gallery, host="127.0.0.1", port=8765).routes
        (events,) = [found.endpoint for found in routes if isinstance(found, APIRoute) and found.path == "/api/events"]
        asked: list[threading.Thread] = []
        monkeypatch.setattr(Store, "version", property(lambda self: asked.append(threading.current_thread())))

        async def receive() -> Message:
            await asyncio.sleep(60)
            return {}

        async def first() -> str:
            answer = await events(Request({"type": "http"}, receive))
            return str(await anext(answer.body_iterator))

        assert asyncio.run(first()).startswith("data: [null, ")
        assert len(asked) == 1
        assert threading.current_thread() not in asked


def test_white_words_can_be_read_on_every_colour() -> None:
    script = files("selfsight.gallery").joinpath("static", "app.js").read_text(encoding="utf-8")
    colours = re.findall(r"#[0-9a-f]{6}", script.split("const COLOURS = ")[1].split(";")[0])
    shares = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])
    luminance = ((shares + 0.055) / 1.055) ** 2.4 @ [0.2126, 0.7152, 0.0722]  # WCAG 2.2; none is near black
    assert len(set(colours)) == 12
    assert (1.05 / (luminance + 0.05)).min() >= 4.5


def test_what_a_disk_refuses_is_said_on_the_page(
    tmp_path: Path, photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [sqlite3.OperationalError("database or disk is full"), PermissionError(1, "Operation not permitted", "x")]

    def refuse(*_: object) -> None:
        raise errors[0]

    with small_gallery(tmp_path, photo, 8) as gallery:
        monkeypatch.setattr(Store, "undo", refuse)
        app = create_app(gallery, host="127.0.0.1", port=8765)
        page = TestClient(app, base_url="http://127.0.0.1:8765", raise_server_exceptions=False)
        for words in ("database or disk is full", "[Errno 1] Operation not permitted: 'x'"):
            answer = page.post("/api/undo", headers={"x-selfsight": "1", "origin": "http://127.0.0.1:8765"})
            assert (answer.status_code, answer.json()) == (500, {"detail": words})
            errors.pop(0)


def test_ctrl_c_ends_the_gallery_while_a_page_is_open(tmp_path: Path, photo: NDArray[np.uint8]) -> None:
    """SIGTERM is in test_browser."""
    run, folder = make_run(tmp_path / "run"), make_photos(tmp_path / "photos", photo, 8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    seen: list[bytes] = []

    def look() -> None:
        for _ in range(300):
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/api/events") as events:  # stays open
                seen.append(events.readline())
                os.kill(os.getpid(), signal.SIGINT)
                with suppress(HTTPException):  # it is cut off
                    events.read()
                return
            time.sleep(0.1)

    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    page = threading.Thread(target=look)
    page.start()
    try:
        serve(run, str(folder), GalleryConfig(port=port, layout="tsne"))
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    page.join(timeout=30)
    assert not page.is_alive()
    assert seen[0].startswith(b"data: [")
