"""The page in a real browser: Debian's Chromium, as `make test` installs it, on five hundred emoji of Noto's font."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Browser, FloatRect, Page, Route, expect, sync_playwright

from selfsight.tasks.predict import PredictConfig, predict
from tests.gallery.galleries import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
KINDS = {
    "faces": (0x1F600, 0x1F64F),
    "animals": (0x1F400, 0x1F43F),
    "food": (0x1F345, 0x1F37F),
    "travel": (0x1F680, 0x1F6C5),
}
OTHERS = ((0x1F300, 0x1F321), (0x1F380, 0x1F3F0), (0x1F440, 0x1F4FC), (0x1F500, 0x1F53D), (0x1F910, 0x1F9FF))
SHOTS = os.environ.get("SELFSIGHT_SHOTS")
"""A folder to which the test writes screenshots, if it is given one."""

expect.set_options(timeout=30_000)  # a busy machine is slow, not wrong

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or not FONT.exists(), reason="needs Debian's chromium and fonts-noto-color-emoji"
)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emoji")
    font = ImageFont.truetype(str(FONT), 109)  # the one size that the font has
    count = 0
    for kind, first, last in [(k, *v) for k, v in KINDS.items()] + [("others", *span) for span in OTHERS]:
        for code in range(first, last + 1):
            picture = Image.new("RGB", (136, 136), "white")
            ImageDraw.Draw(picture).text((0, 0), chr(code), font=font, embedded_color=True)
            if count < 500 and picture.getcolors(1) is None:  # something was drawn
                picture.resize((64, 64)).save(folder / f"{kind}-{code:x}.png")
                count += 1
    assert count == 500
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@contextmanager
def served(run: Path, data: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run `selfsight gallery` as a user does, without UMAP, which compiles for long; yield address and process."""
    flags = ["--port", "0", "--layout", "tsne"]
    command = [sys.executable, "-m", "selfsight.cli", "gallery", str(run), str(data), *flags]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        assert job.stderr is not None
        said = ""
        while not (found := re.search(r"http://[\d.]+:\d+/", said)):
            line = job.stderr.readline()
            assert line, said
            said += line
        for _ in range(100):
            try:
                urllib.request.urlopen(found[0], timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield found[0], job
    finally:
        job.kill()
        job.communicate()


def opened(browser: Browser, address: str, width: int = 1280) -> Page:
    page = browser.new_page(viewport={"width": width, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.errors = errors  # type: ignore[attr-defined]
    page.goto(address)
    expect(page.locator(".tile img").first).to_be_visible()
    return page


def wait_until_learned(address: str) -> None:
    for _ in range(300):
        with urllib.request.urlopen(f"{address}api/state") as answer:
            state = json.load(answer)
        if state["learned"] == state["version"]:
            return
        time.sleep(0.1)
    raise AssertionError("the classifier never learned from the last label")


def shot(page: Page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(400)
        page.screenshot(path=f"{SHOTS}/{name}.png")


def label_by_search(page: Page, names: list[str], key: str) -> None:
    """Click each image and press the class's key; images that are far down are scrolled to by the keyboard."""
    for name in names:
        found = page.locator(f'.tile[title="{name}"]')
        page.keyboard.press("Escape")
        if not found.count():
            page.keyboard.press("Home")  # the last label may have led on to an image farther down
        for _ in range(20):
            page.wait_for_timeout(100)  # a page turned is drawn in the next frame
            expect(page.locator('.tile[title^="image "]')).to_have_count(0)  # what is in sight is known by name
            if found.count():
                break
            page.keyboard.press("PageDown")
        found.click()
        page.keyboard.press(key)


def test_twenty_labels_become_a_classifier(browser: Browser, emoji: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with served(run.path, emoji) as (address, job):
        page = opened(browser, address)
        expect(page.locator("#shown")).to_have_text("500 images")
        shot(page, "grid")

        # search by click
        first = page.locator(".tile").first
        expect(first).to_have_attribute("title", "animals-1f400.png")
        expect(first).to_have_attribute("aria-setsize", "500")
        expect(first).to_have_attribute("aria-posinset", "1")
        first.click()
        expect(page.locator("#one-words")).to_contain_text("animals-1f400.png · 64 × 64")
        expect(page.locator("#one-near button")).to_have_count(12)
        page.keyboard.press("s")
        expect(page.locator("#sort")).to_have_value("similar")
        expect(page.locator(".tile").first).to_have_attribute("title", "animals-1f400.png")
        expect(page.locator(".tile .cosine").first).to_have_text("1.00")

        # search by upload: a copy of another size is found first
        copy = tmp_path / "copy.jpg"
        Image.open(emoji / "food-1f355.png").resize((90, 90)).save(copy, quality=90)
        page.locator("#upload").set_input_files(copy)
        expect(page.locator(".tile").first).to_have_attribute("title", "food-1f355.png")

        # four classes, twenty labels, by mouse and by keys
        for name in KINDS:
            page.locator("#add-name").fill(name)
            page.locator("#add-name").press("Enter")
            expect(page.locator("#classes")).to_contain_text(name)
        page.locator("#sort").select_option("name")
        expect(page.locator(".tile").first).to_have_attribute("title", "animals-1f400.png")
        for i in range(2):
            page.locator(".tile").nth(i).click()
            page.get_by_role("button", name="Label the selection animals").click()
            expect(page.locator("#classes li").nth(1)).to_contain_text(f"{i + 1} [2]")
        page.locator(".tile").nth(2).click()
        for i in range(3):  # on to the next by itself
            page.keyboard.press("2")
            expect(page.locator("#classes li").nth(1)).to_contain_text(f"{i + 3} [2]")
        for place, kind in ((1, "faces"), (3, "food"), (4, "travel")):
            start = sorted(path.name for path in emoji.glob(f"{kind}-*.png"))
            label_by_search(page, start[:5], str(place))
            expect(page.locator("#classes li").nth(place - 1)).to_contain_text(f"5 [{place}]")
        expect(page.locator("#accuracy")).to_contain_text("20 labels")
        expect(page.locator("#accuracy")).to_contain_text("guessed the commonest: 25 %")
        expect(page.locator(".tile .mark.guess").first).to_contain_text("%")
        expect(page.locator(".tile .mark.guess").first).to_have_css("opacity", "1")
        shot(page, "labels")
        classes = page.locator("#classes").inner_text()

        # where what has a label is hidden, the focus stays on its image
        page.locator("#show").select_option("none")
        page.locator(".tile").nth(0).click()
        focused = page.locator(".tile").nth(1).get_attribute("title")
        page.keyboard.press("2")
        expect(page.locator("#classes li").nth(1)).to_contain_text("6 [2]")
        expect(page.locator(".tile").nth(0)).to_have_attribute("title", focused or "")
        expect(page.locator(".tile.at")).to_have_attribute("title", focused or "")
        expect(page.locator(".tile[aria-selected=true]")).to_have_attribute("title", focused or "")
        page.keyboard.press("u")
        expect(page.locator("#classes li").nth(1)).to_contain_text("5 [2]")
        page.locator("#show").select_option("all")

        # undo, and again
        page.keyboard.press("u")
        expect(page.locator("#classes li").nth(3)).to_contain_text("4 [4]")
        page.locator("#redo").click()
        expect(page.locator("#classes li").nth(3)).to_contain_text("5 [4]")

        # the enlarged image: arrows turn, keys label, and no picture stands under the name of the next
        page.locator(".tile[title='animals-1f407.png']").click()
        page.keyboard.press("Enter")
        expect(page.locator("#large p").first).to_have_text("animals-1f407.png")
        expect(page.locator("#large img")).to_have_js_property("naturalWidth", 64)
        page.keyboard.press("ArrowRight")
        expect(page.locator("#large p").first).to_have_text("animals-1f408.png")
        held: list[Route] = []
        page.route(re.compile(r"/image/9\?"), lambda route: held.append(route))
        page.keyboard.press("2")
        expect(page.locator("#large p").first).to_have_text("animals-1f409.png")
        page.wait_for_timeout(500)
        expect(page.locator("#large img")).to_have_js_property("naturalWidth", 0)
        held[0].continue_()
        page.unroute_all()
        expect(page.locator("#classes li").nth(1)).to_contain_text("6 [2]")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#large p").first).to_have_text("animals-1f408.png · animals")
        shot(page, "enlarged")
        page.keyboard.press("u")
        expect(page.locator("#classes li").nth(1)).to_contain_text("5 [2]")
        page.keyboard.press("Escape")
        expect(page.locator("#large")).to_be_hidden()

        # another tab sees each click; after a reload nothing is lost
        other = opened(browser, address)
        expect(other.locator("#classes")).to_have_text(page.locator("#classes").text_content() or "")
        other.locator(".tile").nth(9).click()
        other.keyboard.press("2")
        expect(page.locator("#classes li").nth(1)).to_contain_text("6 [2]")
        other.keyboard.press("u")
        expect(page.locator("#classes li").nth(1)).to_contain_text("5 [2]")
        seen = "(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
        seen += " document.dispatchEvent(new Event('visibilitychange')); }"
        page.evaluate(seen, True)
        other.keyboard.press("2")
        expect(other.locator("#classes li").nth(1)).to_contain_text("6 [2]")
        page.wait_for_timeout(500)
        assert "5 [2]" in page.locator("#classes li").nth(1).inner_text(), "a hidden tab keeps no connection"
        page.evaluate(seen, False)
        expect(page.locator("#classes li").nth(1)).to_contain_text("6 [2]")
        other.keyboard.press("u")
        expect(page.locator("#classes li").nth(1)).to_contain_text("5 [2]")
        told = {"map": False, "failures": {"map": "The map could not be drawn"}}
        other.route("**/api/state", lambda route: route.fulfill(json=route.fetch().json() | told))
        other.reload()
        expect(other.locator("#notice")).to_have_text("The map could not be drawn")
        expect(other.locator("#map-words")).to_have_text("The map could not be drawn")
        other.unroute_all(behavior="ignoreErrors")
        other.close()
        page.reload()
        expect(page.locator("#classes li")).to_have_count(4)
        assert page.locator("#classes").inner_text() == classes

        # the map: a lasso around everything, then around nothing
        page.locator("[data-page=map]").click()
        expect(page.locator("#map-words")).to_contain_text("Draw a lasso", timeout=90_000)
        box = page.locator("#map").bounding_box()
        assert box is not None
        page.locator("#colour").select_option("prediction")
        lasso(page, box, 0.01, 0.99)
        expect(page.locator("#selection")).to_have_text("500 images selected")
        lasso(page, box, 0.3, 0.7)
        expect(page.locator("#selection")).not_to_have_text("500 images selected")
        caught = int((page.locator("#notice").text_content() or "").split()[0])
        assert 0 < caught < 500
        shot(page, "map")
        lasso(page, box, 0.001, 0.012)
        expect(page.locator("#selection")).to_have_text("")

        # a label given here leaves the selection as it is
        page.locator("[data-page=grid]").click()
        page.locator(".tile[title='animals-1f409.png']").click()
        page.locator("[data-page=map]").click()
        page.keyboard.press("2")
        expect(page.locator("#classes li").nth(1)).to_contain_text("6 [2]")
        expect(page.locator("#one-words")).to_contain_text("animals-1f409.png")
        page.keyboard.press("u")
        expect(page.locator("#classes li").nth(1)).to_contain_text("5 [2]")

        # the next to label, doubts, bulk
        page.keyboard.press("n")
        expect(page.locator("#sort")).to_have_value("next")
        expect(page.locator(".tile")).to_have_count(24)
        page.locator("#accept-from").fill("50")
        expect(page.locator("#accept-count")).to_have_text(re.compile(r"^[1-9]\d* images$"))
        wait_until_learned(address)
        page.locator("#accept-go").click()
        expect(page.locator("#notice")).to_contain_text("images labelled; Undo takes them back")
        page.locator("#undo").click()
        expect(page.locator("#accuracy")).to_contain_text("20 labels")
        page.locator("[data-page=copies]").click()
        expect(page.locator("#copies-words")).to_have_text(re.compile("nothing is deleted|No image is there twice"))
        page.locator("[data-page=look]").click()
        expect(page.locator("#report")).to_be_visible()
        page.locator("[data-page=grid]").click()

        # what is exported is what was labelled, and the classifier works
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV").click()
        with Path(download.value.path()).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 20
        assert all(Path(row["path"]).name.startswith(row["label"]) for row in rows)
        page.get_by_role("button", name="Classifier").click()
        expect(page.locator("#notice")).to_contain_text("selfsight predict")
        model = (page.locator("#notice").text_content() or "").split("selfsight predict ")[1].rsplit(" ", 1)[0]
        page.get_by_role("button", name="Folders").click()
        expect(page.locator("#notice")).to_contain_text("Folders: ")
        linked = Path((page.locator("#notice").text_content() or "").split("Folders: ")[1])
        assert sorted(p.parent.name for p in linked.glob("*/*.png")) == sorted([*KINDS] * 5)
        page.locator("#theme").click()
        shot(page, "dark")
        assert [e for e in page.errors if "404" not in e] == []  # type: ignore[attr-defined]
        predict(model, str(emoji), PredictConfig(out=tmp_path / "out", overlays=False))
        with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
            said = {row["path"]: row["class"] for row in csv.DictReader(file)}
        assert set(said.values()) <= set(KINDS)
        learned = [said[Path(row["path"]).name] == row["label"] for row in rows]
        assert sum(learned) >= 15
        page.close()

        # killed while labels are given: all that the page confirmed are there
        page = opened(browser, address)
        page.locator(".tile").nth(10).click()
        for i in range(12):
            page.keyboard.press("2")
            expect(page.locator("#classes li").nth(1)).to_contain_text(f"{6 + i} [2]")
        job.send_signal(signal.SIGKILL)
        job.wait()
        page.keyboard.press("2")
        page.set_viewport_size({"width": 1280, "height": 400})
        expect(page.locator("#notice")).to_contain_text("The server does not answer")
        expect(page.locator("#notice")).to_be_in_viewport(ratio=0.9)
        page.close()
    with served(run.path, emoji) as (address, job):
        with urllib.request.urlopen(f"{address}api/state") as answer:
            state = json.load(answer)
        assert [found["count"] for found in state["classes"]] == [5, 17, 5, 5]
        fits_a_phone(browser, address)
        job.send_signal(signal.SIGTERM)  # while a page is open
        assert job.wait(15) == 0, "as at Ctrl-C, the labels are closed"


def lasso(page: Page, box: FloatRect, low: float, high: float) -> None:
    def spot(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    page.mouse.move(*spot(low, low))
    page.mouse.down()
    for x, y in ((high, low), (high, high), (low, high), (low, low)):
        page.mouse.move(*spot(x, y), steps=6)
    page.mouse.up()


def fits_a_phone(browser: Browser, address: str) -> None:
    page = opened(browser, address, width=390)
    shot(page, "phone-grid")
    assert page.evaluate_handle("document.documentElement").evaluate("e => e.scrollWidth") <= 390
    expect(page.locator("#side")).not_to_be_visible()
    page.locator("#panel-toggle").click()
    expect(page.locator("#add-name")).to_be_visible()
    page.locator("#add-name").fill("others")
    page.locator("#add-name").press("Enter")
    page.locator("#show").select_option("none")
    page.locator(".tile").nth(2).click()
    page.get_by_role("button", name="Label the selection others").click()
    expect(page.locator("#classes li").nth(4)).to_contain_text("1 [5]")
    shot(page, "phone-labels")
    controls = page.locator("button:visible, input:visible, select:visible, a:visible")
    for i in range(controls.count()):
        name = controls.nth(i).evaluate(
            "e => (e.ariaLabel || e.textContent).trim() || [...(e.labels || [])].map(l => l.textContent).join('')"
        )
        assert name.strip(), controls.nth(i).evaluate("e => e.outerHTML")
    page.locator("[data-page=map]").click()
    expect(page.locator("#map-words")).to_contain_text("Draw a lasso", timeout=90_000)
    shot(page, "phone-map")
    assert page.errors == []  # type: ignore[attr-defined]
