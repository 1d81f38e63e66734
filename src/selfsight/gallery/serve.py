"""`selfsight gallery`: embed what is new, then serve the page until Ctrl-C."""

import secrets
import signal
import socket
import webbrowser
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import uvicorn

from selfsight.api import Run
from selfsight.data.sources import list_images
from selfsight.errors import SelfsightError
from selfsight.gallery.guard import is_local
from selfsight.gallery.server import create_app
from selfsight.gallery.state import Gallery
from selfsight.gallery.store import Store, labelled
from selfsight.pretraining import place_of
from selfsight.progress import say
from selfsight.search.layout import MapKind


@dataclass(frozen=True)
class GalleryConfig:
    """How to serve the page."""

    port: int = 8765
    """Port on this machine; 0 takes a free one."""
    host: str = "127.0.0.1"
    """Address to serve at. Any other than this machine's own, 0.0.0.0 for example, lets others in: then the page asks
    for a token, which is printed with its address."""
    labels: Path | None = None
    """SQLite file of the labels; by default gallery/<data>-<hash>/labels.db in the run's folder."""
    take: str | None = None
    """Labels for those of these images that have none yet: a table (path,label), as `select --out` and the page's
    export write, or a folder with a subfolder a class. On the page it is one step, which can be undone."""
    layout: MapKind = "umap"
    """How images are laid out on the map: umap, or tsne, which takes several times as long."""
    browser: bool = False
    """Open the page in the browser."""


def open_gallery(run: Run, data: str, labels: Path | None = None, map_kind: MapKind = "umap") -> Gallery:
    """Return the gallery of a data set, its new images embedded."""
    index = run.index(data)
    file = labels or run.path / "gallery" / place_of(data) / "labels.db"
    return Gallery(index, run.images(data, stretch=index.stretch), run.backbone(), run.folder, Store(file), map_kind)


def labels_elsewhere(run: Run, gallery: Gallery) -> str:
    """Say where these pictures have labels, if they have none here: the data was moved, or a better run was trained."""
    if gallery.store.labels():
        return ""
    keys, most, place = set(gallery.keys), 0, None
    for file in run.path.absolute().parent.glob("*/gallery/*/labels.db"):
        count = len(labelled(file) & keys)
        if count > most:
            most, place = count, file
    return f"{most:,} of these pictures have labels in {place}: --labels takes them" if place else ""


def serve(run: Run, data: str, config: GalleryConfig) -> None:
    """Serve the gallery of a data set until Ctrl-C; SelfsightError for a port that is taken."""
    listener = _listen(config)
    port = int(listener.getsockname()[1])
    given = None if config.take is None else list_images(config.take)
    gallery = open_gallery(run, data, config.labels, config.layout)
    if given is not None:
        taken, labels = gallery.take(given)
        words = "others are of images that have one, or that are not in this data"
        say(f"{taken:,} of {labels:,} labels of {config.take} taken; {words}")
    token = None if is_local(config.host) else secrets.token_urlsafe(24)
    app = create_app(gallery, host=config.host, port=port, token=token)
    name = config.host if config.host not in ("0.0.0.0", "::") else socket.gethostname()
    address = f"http://{f'[{name}]' if ':' in name else name}:{port}/" + (f"?token={token}" if token else "")
    elsewhere = gallery.elsewhere()
    kept = f" ({elsewhere:,} of pictures that are not in this data are kept in it)" if elsewhere else ""
    if words := labels_elsewhere(run, gallery):
        say(words)
    say(f"{len(gallery.entries):,} images, labels in {gallery.store.path}{kept}\n{address}  (Ctrl-C ends)")
    if config.browser:
        Timer(0.5, webbrowser.open, [address]).start()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
    # As Ctrl-C: uvicorn raises a signal again, and the default would end the process with the labels open.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no closed terminals
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup's
            signal.signal(number, server.handle_exit)
    try:
        with suppress(KeyboardInterrupt):  # the usual end
            server.run(sockets=[listener])
    finally:
        gallery.close()


def _listen(config: GalleryConfig) -> socket.socket:
    """Take the port before the images are embedded, so that a taken one is known at once."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen()  # else another gallery could bind it too, and would fail after all its embedding
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise SelfsightError(f"--host {config.host} --port {config.port}: {reason.lower()}") from error
    return listener
