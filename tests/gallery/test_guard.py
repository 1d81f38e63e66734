"""Fifty hostile requests get a refusal, and change nothing."""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from selfsight.gallery.guard import HEADERS, LARGEST, is_local
from selfsight.gallery.server import create_app
from selfsight.gallery.state import Gallery
from tests.gallery.galleries import small_gallery

HOST = "127.0.0.1:8765"
MARK = {"x-selfsight": "1", "origin": f"http://{HOST}"}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, photo: NDArray[np.uint8]) -> Iterator[Gallery]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "secret.jpg").parent.mkdir(exist_ok=True)
    Image.fromarray(photo[:50, :50]).save(folder / "secret.jpg")
    (folder / "secret.txt").write_text("secret")
    with small_gallery(folder, photo, 12) as made:
        made.store.add_class("cat")
        yield made


@pytest.fixture
def client(gallery: Gallery) -> TestClient:
    return TestClient(create_app(gallery, host="127.0.0.1", port=8765), base_url=f"http://{HOST}")


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def large() -> bytes:
    """An image of few bytes, whose pixels are more than the page decodes."""
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    return file.getvalue()


PATHS = [
    "/thumb/../../etc/passwd",
    "/thumb/..%2f..%2fetc%2fpasswd",
    "/thumb/%2e%2e/secret.txt",
    "/thumb/secret.jpg",
    "/thumb/-1",
    "/thumb/12",
    "/thumb/99999999999999999999999",
    "/thumb/0?side=100000",
    "/thumb/0?side=-3",
    "/thumb/0%00",
    "/image/../../../secret.jpg",
    "/image/..%5c..%5csecret.jpg",
    "/image/file:%2f%2f%2fetc%2fpasswd",
    "/image/1e3",
    "/image/0x1",
    "/static/../state.py",
    "/static/..%2fstate.py",
    "/static/%2e%2e%2f%2e%2e%2fapi.py",
    "/static/labels.db",
    "/static//etc/passwd",
    "/etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/api/items?ids=../../etc/passwd",
    "/api/items?ids=1;DROP TABLE labels",
    "/api/items?ids=" + ",".join(["1"] * 501),
    "/api/items?ids=" + "1" * 5000,
    "/api/items?ids=-5",
    "/api/similar/0?k=100000000",
    "/api/similar/abc",
    "/api/next?n=1000000",
    "/api/order?by='; DROP TABLE labels; --",
    "/docs",
    "/openapi.json",
]
BODIES: list[tuple[str, object]] = [
    ("/api/label", {"images": [99], "class": 1}),
    ("/api/label", {"images": [-1], "class": 1}),
    ("/api/label", {"images": [0], "class": 77}),
    ("/api/label", {"images": ["../../etc/passwd"], "class": 1}),
    ("/api/label", {"images": "all", "class": 1}),
    ("/api/label", {"images": [0]}),
    ("/api/label", "not an object"),
    ("/api/classes", {"name": ""}),
    ("/api/classes", {"name": "x" * 5000}),
    ("/api/classes", {"name": "a\u0000b"}),
    ("/api/classes/99", {"name": "dog"}),
    ("/api/classes/99/remove", {}),
    ("/api/accept", {"class": 1, "confidence": 7}),
    ("/api/search", b""),
    ("/api/search", b"<svg onload=alert(1)>"),
    ("/api/search", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run"),
    ("/api/search", bomb()),
    ("/api/search", large()),
]
FOREIGN: list[dict[str, str]] = [
    {"host": "evil.example:8765"},
    {"host": "127.0.0.1:8765.evil.example"},
    {"host": ""},
    {"origin": "http://evil.example"},
    {"origin": "http://127.0.0.1:9999"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


def everything(gallery: Gallery) -> object:
    return (
        gallery.store.version,
        gallery.store.labels(),
        gallery.store.classes(),
        sorted(gallery.store.path.parent.iterdir()),
    )


@pytest.mark.parametrize("path", PATHS)
def test_nothing_but_the_gallery_is_served(client: TestClient, gallery: Gallery, path: str) -> None:
    answer = client.get(path)
    assert 400 <= answer.status_code < 500
    assert "root:" not in answer.text
    assert "secret" not in answer.text.replace(path, "").replace("secret.jpg", "")


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_what_makes_no_sense_changes_nothing(client: TestClient, gallery: Gallery, path: str, body: object) -> None:
    before = everything(gallery)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    answer = client.post(path, content=content, headers=MARK | {"content-type": kind})
    assert 400 <= answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text
    assert everything(gallery) == before


@pytest.mark.parametrize("headers", FOREIGN)
def test_other_sites_may_neither_read_nor_write(client: TestClient, gallery: Gallery, headers: dict[str, str]) -> None:
    before = everything(gallery)
    assert client.get("/api/state", headers=headers).status_code == 403
    wish = {"images": [0], "class": 1}
    assert client.post("/api/label", json=wish, headers=MARK | headers).status_code == 403
    assert everything(gallery) == before


def test_a_form_of_another_page_cannot_write(client: TestClient, gallery: Gallery) -> None:
    before = everything(gallery)
    assert client.post("/api/undo", data={}).status_code == 403, (
        "without the header that only scripts of this page send"
    )
    assert client.get("/api/undo").status_code in (404, 405)
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert client.request(method, "/api/label", headers=MARK).status_code == 405
    assert everything(gallery) == before


def test_a_huge_upload_is_refused_before_it_is_read(client: TestClient) -> None:
    too_long = {"content-length": str(LARGEST + 1)}
    assert client.post("/api/search", content=b"x", headers=MARK | too_long).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range((LARGEST >> 20) + 2):
            yield b"\0" * (1 << 20)

    assert client.post("/api/search", content=chunks(), headers=MARK).status_code == 413


def test_links_to_elsewhere_show_no_more_than_the_page_has_already(tmp_path: Path, photo: NDArray[np.uint8]) -> None:
    Image.fromarray(photo[:200, :200]).save(tmp_path / "secret.png")
    with small_gallery(tmp_path, photo, 8) as gallery:
        client = TestClient(create_app(gallery, host="127.0.0.1", port=8765), base_url=f"http://{HOST}")
        victim = Path(str(gallery.entries[0].file))
        assert Image.open(io.BytesIO(client.get("/image/0").content)).size == (70, 64)
        victim.unlink()
        victim.symlink_to(tmp_path / "secret.png")
        assert max(Image.open(io.BytesIO(client.get("/image/0").content)).size) < 200


def test_words_in_file_names_and_exif_stay_words(tmp_path: Path, photo: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x010E] = "<script>alert(1)</script>"
    exif[0x8298] = "who made it"
    odd = tmp_path / "photos" / "<img src=x onerror=alert(1)>.jpg"
    odd.parent.mkdir(parents=True)
    Image.fromarray(photo[:64, :64]).save(odd, exif=exif)
    with small_gallery(tmp_path, photo, 8) as gallery:
        client = TestClient(create_app(gallery, host="127.0.0.1", port=8765), base_url=f"http://{HOST}")
        (number,) = [i for i, entry in enumerate(gallery.entries) if "onerror" in entry.name]
        told = client.get(f"/api/items?ids={number}")
        assert told.headers["content-type"] == "application/json"
        assert told.json()[0]["name"] == odd.name
        for path in (f"/image/{number}", f"/thumb/{number}"):
            answer = client.get(path)
            assert answer.headers["content-type"] == "image/jpeg"
            assert b"script" not in answer.content
            assert b"who made it" not in answer.content


def test_every_answer_keeps_browsers_strict(client: TestClient) -> None:
    for path in ("/", "/static/app.js", "/api/state", "/thumb/0", "/nowhere"):
        assert {name: client.get(path).headers[name] for name in HEADERS} == HEADERS, path
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_a_forwarded_port_is_let_in(client: TestClient) -> None:
    for host in ("localhost:9000", "127.0.0.1", "[::1]:80"):
        assert client.get("/api/state", headers={"host": host}).status_code == 200, host


def test_elsewhere_only_who_has_the_token_is_let_in(gallery: Gallery) -> None:
    app = create_app(gallery, host="0.0.0.0", port=8765, token="right")
    base = "http://desk.lan:8765"
    for path in ("/", "/api/state", "/thumb/0", "/?token=wrong", "/api/state?token=right", "/?token="):
        assert TestClient(app, base_url=base).get(path).status_code == 401, path
    wrong = TestClient(app, base_url=base, cookies={"selfsight-8765": "wrong"})
    assert wrong.get("/api/state").status_code == 401
    client = TestClient(app, base_url=base)
    entered = client.get("/?token=right", follow_redirects=False)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert "samesite=lax" in entered.headers["set-cookie"].lower(), "the link may be opened from a mail"
    assert client.get("/api/state").status_code == 200
    assert client.post("/api/undo", headers={"x-selfsight": "1", "origin": "http://evil.example"}).status_code == 403
    other = create_app(gallery, host="0.0.0.0", port=8766, token="left")
    second = TestClient(other, base_url="http://desk.lan:8766", cookies=client.cookies)
    second.get("/?token=left")
    assert second.get("/api/state").status_code == 200
    assert TestClient(app, base_url=base, cookies=second.cookies).get("/api/state").status_code == 200
    own = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    for odd in ('prefs={"a":1}', "x=a b", "flag"):
        bare = TestClient(app, base_url=base, headers={"cookie": f"{odd}; {own}"})
        assert bare.get("/api/state").status_code == 200, "another program's cookie hides ours"


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("desk.lan", False)],
)
def test_this_machine_is_told_from_others(host: str, local: bool) -> None:
    assert is_local(host) is local


def test_a_page_of_an_earlier_server_changes_nothing(client: TestClient, gallery: Gallery) -> None:
    identity = client.post("/api/classes", json={"name": "page"}, headers=MARK).json()["id"]
    before, wish = everything(gallery), {"images": [0], "class": identity}
    answer = client.post("/api/label", json=wish, headers=MARK | {"x-started": "0123"})
    assert (answer.status_code, everything(gallery)) == (409, before)
    assert "reload" in answer.json()["detail"]
    started = client.get("/api/state").json()["started"]
    assert client.post("/api/label", json=wish, headers=MARK | {"x-started": started}).status_code == 200


def test_exported_folders_take_no_file_away(client: TestClient, gallery: Gallery) -> None:
    identity = client.post("/api/classes", json={"name": "folder"}, headers=MARK).json()["id"]
    client.post("/api/label", json={"images": [0], "class": identity}, headers=MARK)
    folder = Path(client.post("/api/export/folders", headers=MARK).json()["path"])
    assert client.post("/api/export/folders", headers=MARK).status_code == 200, "links are replaced"
    (folder / "folder" / "mine.jpg").write_bytes(b"mine")
    answer = client.post("/api/export/folders", headers=MARK)
    assert answer.status_code == 400
    assert "mine.jpg" in answer.json()["detail"]
    assert (folder / "folder" / "mine.jpg").read_bytes() == b"mine"
