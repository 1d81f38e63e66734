"""The gallery's speed: fitting the classifier, the first screen, scrolling, and embedding beside the network's ceiling.

    python benchmarks/gallery.py RUN PHOTOS --images 100000

The images are crops of the photos, 64 pixels a side, as an array on disk. The browser is Debian's Chromium, headless,
on the same machine: it shares the cores with the server. A first screen counts from the request to the last picture
that is in sight; scrolling is by 120 pixels a frame for 5 seconds, and a frame is late if it took over 50 ms.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

import selfsight
from selfsight.data import ImageSet
from selfsight.evaluate.features import evaluating, extract
from selfsight.gallery.learn import answer
from selfsight.nn import autocast

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ROUNDS = 9
"""How often embedding and its ceiling take turns: one of them is off by a tenth at times."""
FRAMES = """async () => {
  const grid = document.getElementById('grid'), times = [];
  let last = performance.now();
  const end = last + 5000;
  while (performance.now() < end) {
    grid.scrollTop += 120;
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  return times;
}"""


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    photos: tyro.conf.Positional[Path]
    """Folder of photos."""
    images: int = 100_000
    """Images in the gallery."""


def crops(photos: ImageSet, count: int, side: int = 64) -> NDArray[np.uint8]:
    """Return crops (count, side, side, 3) at random places of the photos."""
    random = np.random.default_rng(0)
    squares = np.asarray(photos.images[np.arange(len(photos))]).transpose(0, 2, 3, 1)
    which = random.integers(0, len(squares), count)
    y, x = random.integers(0, squares.shape[1] - side + 1, (2, count))
    return np.stack([squares[w, a : a + side, b : b + side] for w, a, b in zip(which, y, x, strict=True)])


def fitting(count: int, table: Table) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 512)).astype(np.float32)
    for labels in (20, 200):
        known = np.full(count, -1)
        known[:labels] = np.arange(labels) % 4 + 1
        seconds = [answer(x, known, 1).seconds for _ in range(5)]
        table.add_row(
            f"classifier, {labels} labels, {count:,} images", f"{np.median(seconds):.3f} s (of 5: {max(seconds):.3f})"
        )


def embedding(run: selfsight.Run, images: ImageSet, table: Table) -> None:
    """Embedding from the cache, and the same network on ready-made tensors, in turns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = run.backbone().to(device)
    rows = np.arange(min(len(images), 4096))
    x = torch.rand(256, backbone.spec.channels, backbone.spec.image_size, backbone.spec.image_size, device=device)
    x = x.to(memory_format=torch.channels_last)
    real, ready = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        extract(backbone, images, rows, device=device)
        real.append(len(rows) / (time.perf_counter() - start))
        start = time.perf_counter()
        with evaluating(backbone), autocast(device):
            for _ in range(len(rows) // 256):
                backbone(x).float().cpu()
        ready.append(len(rows) // 256 * 256 / (time.perf_counter() - start))
    share = np.median(np.array(real) / np.array(ready))
    table.add_row(
        "embedding, images a second", f"{np.median(real):,.0f}, of a ceiling of {np.median(ready):,.0f}: {share:.2f}"
    )


def first_screen(page: Page, address: str) -> float:
    start = time.perf_counter()
    page.goto(address)
    page.locator(".tile img").first.wait_for()
    while page.evaluate("() => [...document.querySelectorAll('.tile img')].some(image => !image.complete)"):
        time.sleep(0.01)
    return time.perf_counter() - start


def page_speed(run: Path, data: Path, count: int, table: Table) -> None:
    command = [sys.executable, "-m", "selfsight.cli", "gallery", str(run), str(data), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job, sync_playwright() as playwright:
        try:
            assert job.stderr is not None
            address = next(found[0] for line in job.stderr if (found := re.search(r"http://[\d.]+:\d+/", line)))
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            while b'"map":true' not in urllib.request.urlopen(f"{address}api/state").read():
                time.sleep(2)
            firsts = []
            for _ in range(5):
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                firsts.append(first_screen(page, address))
                if len(firsts) < 5:
                    page.close()
            table.add_row(f"first screen, {count:,} images", f"{np.median(firsts):.2f} s (of 5: {max(firsts):.2f})")
            times = np.array(page.evaluate(FRAMES))
            late = (times > 50).mean()
            p50, p95 = np.percentile(times, [50, 95])
            table.add_row(
                f"scrolling, {count:,} images", f"a frame {p50:.0f} ms, 95 % under {p95:.0f} ms, late {late:.1%}"
            )
            browser.close()
        finally:
            job.kill()


def main(asked: Arguments) -> None:
    run = selfsight.load(asked.run)
    table = Table("what", "measured")
    fitting(asked.images, table)
    photos = run.images(str(asked.photos))
    embedding(run, photos, table)
    Console().print(table)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "crops.npz"
        np.savez(data, images=crops(photos, asked.images))
        page_speed(asked.run, data, asked.images, table)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
