"""The page's server. Images are told by number, so that no path is ever asked for."""

import asyncio
import hashlib
import io
import json
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from PIL import Image
from pydantic import BaseModel, Field

from selfsight.data import open_images
from selfsight.data.decode import DEEP_MODES, BadImageError, on_white, open_image, reasons, upright
from selfsight.errors import SelfsightError
from selfsight.gallery.guard import Guard, TooLargeError
from selfsight.gallery.state import Gallery, Order, embed_one
from selfsight.pictures import rgb, shrunk

MOST_ASKED, MOST_LABELLED = 500, 1_000_000
"""Images whose facts are told at once, and that are labelled at once."""
LONGEST = 1600
"""Pixels of the longer side of an image that is shown alone."""
MOST_PIXELS = 60_000_000
"""Of an image that is dropped on the page: to decode more would take the machine's memory."""
NEIGHBOURS = 60
TICK = 0.1
"""Seconds between two looks at whether something has changed."""
FOREVER = {"cache-control": "private, max-age=31536000, immutable"}
CONTENT = {"page.html": "text/html", "app.js": "text/javascript", "app.css": "text/css"}


class LabelWish(BaseModel):
    """Give these images a class, or take theirs away."""

    images: list[int] = Field(max_length=MOST_LABELLED)
    cls: int | None = Field(alias="class")


class ClassWish(BaseModel):
    """Make a class, or name one."""

    name: str = Field(max_length=1000)


class AcceptWish(BaseModel):
    """Label what the classifier is sure of."""

    cls: int = Field(alias="class")
    confidence: float = Field(ge=0, le=1)


def create_app(gallery: Gallery, *, host: str, port: int, token: str | None = None) -> FastAPI:
    """Return the application that serves this gallery to this machine, or to who has the token."""
    started = secrets.token_hex(8)

    def same_numbers(x_started: Annotated[str, Header()] = "") -> None:
        """Refuse a page that an earlier server sent: its numbers may mean other images now."""
        if x_started not in ("", started):
            raise HTTPException(409, "the gallery was started again since this page was opened; reload it")

    own: Any = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(title="selfsight", dependencies=[Depends(same_numbers)], **own)
    app.add_middleware(Guard, host=host, port=port, token=token)

    @app.exception_handler(SelfsightError)
    async def refuse(_: Request, error: SelfsightError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(OSError)
    @app.exception_handler(sqlite3.Error)
    async def fail(_: Request, error: Exception) -> JSONResponse:
        """Say why it could not be done: a full disk, a folder that can't be written or holds no links."""
        return JSONResponse({"detail": str(error)}, 500)

    @app.exception_handler(TooLargeError)
    async def too_large(_: Request, __: TooLargeError) -> PlainTextResponse:
        return PlainTextResponse("too large", 413)

    @app.get("/", response_class=HTMLResponse)
    def page() -> Response:
        return Response(
            _static("page.html"), media_type="text/html; charset=utf-8", headers={"cache-control": "no-store"}
        )

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in CONTENT:
            return PlainTextResponse("no such file", 404)
        kind = f"{CONTENT[name]}; charset=utf-8"
        return Response(_static(name), media_type=kind, headers={"cache-control": "no-cache"})

    @app.get("/api/state")
    def state() -> dict[str, Any]:
        return _state(gallery, started)

    @app.get("/api/events")
    async def events(request: Request) -> StreamingResponse:
        def moment() -> tuple[object, ...]:
            known = gallery.store.version, gallery.answers.version, gallery.places is not None
            return *known, *gallery.failures.values()

        async def changes() -> AsyncIterator[str]:
            last: tuple[object, ...] = ()
            while not await request.is_disconnected():
                now = await asyncio.to_thread(moment)  # the labels may be locked
                if now != last:
                    last = now
                    yield f"data: {json.dumps(now)}\n\n"
                await asyncio.sleep(TICK)

        return StreamingResponse(changes(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    @app.get("/api/order")
    def order(by: Order = "name") -> Response:
        return _numbers(gallery.order(by).astype("<u4"))

    @app.get("/api/labels")
    def labels() -> Response:
        return _numbers(gallery.labels().astype("<i4"))

    @app.get("/api/predictions")
    def predictions() -> Response:
        """Return N ids of classes as int32 and N probabilities as float32, one after the other."""
        answers = gallery.answers
        return Response(
            answers.best.astype("<i4").tobytes() + answers.confidence.astype("<f4").tobytes(),
            media_type="application/octet-stream",
            headers={"cache-control": "no-store"},
        )

    @app.get("/api/map")
    def places() -> Response:
        """Return N clusters as int32, then N places as two float32 each; 404 until they are known."""
        if gallery.places is None or gallery.cluster is None:
            return PlainTextResponse("not yet", 404)
        return Response(
            gallery.cluster.astype("<i4").tobytes() + gallery.places.astype("<f4").tobytes(),
            media_type="application/octet-stream",
        )

    @app.get("/api/items")
    def items(ids: Annotated[str, Query(max_length=8 * MOST_ASKED)]) -> list[dict[str, Any]]:
        numbers = _parsed(ids)
        gallery.keys_of(numbers)
        return [gallery.facts(number) for number in numbers]

    @app.get("/api/similar/{number}")
    def similar(number: int, k: Annotated[int, Query(ge=1, le=1000)] = NEIGHBOURS) -> list[tuple[int, float]]:
        gallery.keys_of([number])
        return gallery.like(gallery.vectors[number], k)

    @app.post("/api/search")
    async def search(request: Request) -> list[tuple[int, float]]:
        content = await request.body()
        return await asyncio.to_thread(_search, gallery, content)

    @app.get("/api/next")
    def following(n: Annotated[int, Query(ge=1, le=200)] = 24) -> list[int]:
        return [int(i) for i in gallery.next(n)]

    @app.get("/api/duplicates")
    def copies() -> list[dict[str, Any]]:
        return [
            {
                "kind": group.kind,
                "similarity": round(group.similarity, 4),
                "images": [gallery.number[e.name] for e in group.entries if e.name in gallery.number],
            }
            for group in gallery.copies()
        ]

    @app.get("/thumb/{number}")
    def thumb(number: int, side: Annotated[int, Query(ge=32, le=512)] = 192) -> Response:
        gallery.keys_of([number])
        return Response(_thumbnail(gallery, number, side), media_type="image/jpeg", headers=FOREVER)

    @app.get("/image/{number}")
    def image(number: int) -> Response:
        gallery.keys_of([number])
        return Response(_large(gallery, number), media_type="image/jpeg", headers=FOREVER)

    @app.post("/api/classes")
    def add_class(wish: ClassWish) -> dict[str, Any]:
        identity = gallery.store.add_class(wish.name)
        return _done(gallery) | {"id": identity}

    @app.post("/api/classes/{identity}")
    def rename_class(identity: int, wish: ClassWish) -> dict[str, Any]:
        gallery.store.rename_class(identity, wish.name)
        return _done(gallery)

    @app.post("/api/classes/{identity}/remove")
    def remove_class(identity: int) -> dict[str, Any]:
        gallery.store.remove_class(identity)
        return _done(gallery)

    @app.post("/api/label")
    def label(wish: LabelWish) -> dict[str, Any]:
        changed = gallery.store.label(gallery.keys_of(wish.images), wish.cls)
        return _done(gallery) | {"changed": changed}

    @app.post("/api/accept")
    def accept(wish: AcceptWish) -> dict[str, Any]:
        changed = gallery.accept(wish.cls, wish.confidence)
        return _done(gallery) | {"changed": changed}

    @app.post("/api/undo")
    def undo() -> dict[str, Any]:
        words = gallery.store.undo()
        return _done(gallery) | {"words": words}

    @app.post("/api/redo")
    def redo() -> dict[str, Any]:
        words = gallery.store.redo()
        return _done(gallery) | {"words": words}

    @app.get("/api/export/labels.csv")
    def export_csv() -> Response:
        return _download(gallery.export_csv, "labels.csv", "text/csv")

    @app.get("/api/export/labels.json")
    def export_coco() -> Response:
        return _download(gallery.export_coco, "labels.json", "application/json")

    @app.post("/api/export/folders")
    def export_folders() -> dict[str, str]:
        return {"path": str(gallery.export_folders(gallery.store.path.parent / "folders"))}

    @app.post("/api/export/classifier")
    def export_classifier() -> dict[str, str]:
        return {"path": str(gallery.export_classifier(gallery.store.path.parent / "classifier"))}

    @app.get("/look")
    def look() -> Response:
        report = gallery.folder.path / "report.html"
        if not report.exists():
            return PlainTextResponse("this run has no report; write it with `selfsight report`", 404)
        # The report is one page with its own styles and pictures in it; it runs no script and asks for nothing.
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox"
        return FileResponse(report, media_type="text/html", headers={"content-security-policy": policy})

    return app


def _static(name: str) -> bytes:
    return files("selfsight.gallery").joinpath("static", name).read_bytes()


def _state(gallery: Gallery, started: str) -> dict[str, Any]:
    answers, store = gallery.answers, gallery.store
    undo, redo = store.can()
    accuracy = answers.accuracy
    return {
        "started": started,
        "data": gallery.source,
        "run": str(gallery.folder.path),
        "images": len(gallery.entries),
        "skipped": len(gallery.skipped),
        "dates": any(entry.taken for entry in gallery.entries),
        "version": store.version,
        "learned": answers.version,
        "seconds": round(answers.seconds, 3),
        "classes": [{"id": c.id, "name": c.name, "count": c.count} for c in store.classes()],
        "undo": undo,
        "redo": redo,
        "map": gallery.places is not None,
        "failures": dict(gallery.failures),
        "accuracy": None
        if accuracy is None
        else {
            "value": accuracy.value,
            "low": accuracy.interval[0],
            "high": accuracy.interval[1],
            "count": accuracy.count,
            "guess": accuracy.guess,
        },
    }


def _done(gallery: Gallery) -> dict[str, Any]:
    """Let the classifier learn from what was saved just now."""
    gallery.trainer.wake()
    return {"version": gallery.store.version}


def _numbers(values: Any) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(values.tobytes(), media_type="application/octet-stream", headers=headers)


def _parsed(ids: str) -> list[int]:
    parts = [part for part in ids.split(",") if part]
    if len(parts) > MOST_ASKED or not all(part.isascii() and part.isdecimal() and len(part) < 12 for part in parts):
        raise SelfsightError(f"ids: up to {MOST_ASKED} numbers, separated by commas")
    return [int(part) for part in parts]


def _search(gallery: Gallery, content: bytes) -> list[tuple[int, float]]:
    """Return the images most similar to the one in these bytes; SelfsightError if they are none, or too many pixels."""
    try:
        with reasons(), open_image(io.BytesIO(content)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise BadImageError(f"more than {MOST_PIXELS / 1e6:.0f} million pixels")
            turned = upright(image)
            pixels = np.asarray(turned if turned.mode in DEEP_MODES else on_white(turned))
    except BadImageError as error:
        raise SelfsightError(f"this image cannot be used: {error}") from error
    spec = gallery.backbone.spec
    stretch = gallery.images.stretch
    found = open_images(pixels[None], image_size=spec.image_size, channels=spec.channels, stretch=stretch)
    return gallery.like(embed_one(gallery.backbone, found), NEIGHBOURS)


def _thumbnail(gallery: Gallery, number: int, side: int) -> bytes:
    """Return a JPEG, its longer side at most `side` pixels, from the decoded images: no metadata, no original bytes."""
    row = int(gallery.rows[number])
    square = gallery.images.images[np.array([row])]
    picture = Image.fromarray(rgb(np.asarray(square / 255.0, np.float32))[0])
    aspect = float(gallery.images.aspect[row])
    longer = min(side, max(picture.width, 96))
    shape = (longer, max(1, round(longer / aspect))) if aspect >= 1 else (max(1, round(longer * aspect)), longer)
    return _jpeg(picture.resize(shape, Image.Resampling.BICUBIC))


def _large(gallery: Gallery, number: int) -> bytes:
    """Return the image itself as a JPEG of at most LONGEST pixels, or, where it is not there any more, its thumbnail.

    By its content: a link may have been led elsewhere meanwhile, to what nobody meant to show.
    """
    entry = gallery.entries[number]
    with suppress(BadImageError, OSError):
        file = Path(entry.file or "")
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == entry.content:  # a pipe would never end
            return _jpeg(shrunk(str(file), LONGEST))
    return _thumbnail(gallery, number, 512)


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def _download(write: Any, name: str, kind: str) -> Response:
    with TemporaryDirectory() as folder:
        content = write(Path(folder) / name).read_bytes()
    return Response(content, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})
