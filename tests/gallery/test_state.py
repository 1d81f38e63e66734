"""Labels belong to pictures, whatever their files are called; 16-bit pictures are seen as what they are."""

import io
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copy

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from selfsight.api import Run
from selfsight.data import open_images
from selfsight.data.sources import list_images
from selfsight.errors import SelfsightError
from selfsight.gallery.serve import labels_elsewhere, open_gallery
from selfsight.gallery.server import _large, _search, _state
from selfsight.gallery.state import Gallery
from selfsight.run import RunFolder
from selfsight.search.select import Strategy, select
from selfsight.tasks.predict import PredictConfig, predict
from tests.gallery.galleries import make_photos, make_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run")


def labelled(gallery: Gallery) -> dict[str, str]:
    classes = {found.id: found.name for found in gallery.store.classes()}
    return {e.name: classes[int(i)] for e, i in zip(gallery.entries, gallery.labels(), strict=True) if i >= 0}


def give(gallery: Gallery, names: list[str], name: str) -> None:
    identity = gallery.store.add_class(name)
    gallery.store.label(gallery.keys_of(gallery.number[n] for n in names), identity)


def test_a_label_follows_a_renamed_picture_and_not_its_name(tmp_path: Path, photo: NDArray[np.uint8], run: Run) -> None:
    folder = make_photos(tmp_path / "photos", photo, 8)
    gallery = open_gallery(run, str(folder))
    give(gallery, ["a/000.jpg"], "sky")
    gallery.close()
    (folder / "a" / "000.jpg").rename(folder / "moved.jpg")
    (folder / "b" / "001.jpg").rename(folder / "a" / "000.jpg")  # another picture takes the name
    gallery = open_gallery(run, str(folder))
    assert labelled(gallery) == {"moved.jpg": "sky"}
    assert gallery.elsewhere() == 0
    gallery.close()
    (folder / "moved.jpg").unlink()
    gallery = open_gallery(run, str(folder))
    assert labelled(gallery) == {}
    assert gallery.elsewhere() == 1, "kept, should the picture come back"
    gallery.close()


def test_exact_copies_share_a_label_which_teaches_once(tmp_path: Path, photo: NDArray[np.uint8], run: Run) -> None:
    folder = make_photos(tmp_path / "photos", photo, 8)
    copy(folder / "a" / "000.jpg", folder / "copy.jpg")
    gallery = open_gallery(run, str(folder))
    give(gallery, ["copy.jpg"], "sky")
    assert labelled(gallery) == {"a/000.jpg": "sky", "copy.jpg": "sky"}
    assert (gallery.lessons()[0] >= 0).sum() == 1
    gallery.close()


def test_labels_from_when_names_were_the_keys_are_taken_over(
    tmp_path: Path, photo: NDArray[np.uint8], run: Run
) -> None:
    folder = make_photos(tmp_path / "photos", photo, 8)
    gallery = open_gallery(run, str(folder))
    give(gallery, ["a/000.jpg"], "sky")
    gallery.close()
    with sqlite3.connect(gallery.store.path) as database:
        database.execute("UPDATE labels SET image = 'a/000.jpg'")
    gallery = open_gallery(run, str(folder))
    assert labelled(gallery) == {"a/000.jpg": "sky"}
    assert set(gallery.store.labels()) == {gallery.entries[0].content}
    gallery.close()


def test_accepting_learns_from_the_labels_of_another_window(tmp_path: Path, photo: NDArray[np.uint8], run: Run) -> None:
    folder = make_photos(tmp_path / "photos", photo, 8)
    mine, theirs = open_gallery(run, str(folder)), open_gallery(run, str(folder))
    give(theirs, ["a/000.jpg"], "sky")
    give(theirs, ["b/001.jpg"], "sea")
    changed = mine.accept(1, 0.0) + mine.accept(2, 0.0)
    assert changed == len(mine.entries) - 2
    assert (labelled(mine)["a/000.jpg"], labelled(mine)["b/001.jpg"]) == ("sky", "sea"), "what was given stays"
    mine.close()
    theirs.close()


def test_what_was_accepted_is_no_measure_of_what_accepts_it(tmp_path: Path, photo: NDArray[np.uint8], run: Run) -> None:
    gallery = open_gallery(run, str(make_photos(tmp_path / "photos", photo, 18)))
    names = [entry.name for entry in gallery.entries]
    give(gallery, names[:6], "sky")
    give(gallery, names[8:14], "sea")
    assert gallery.accept(1, 0.0) + gallery.accept(2, 0.0) == len(names) - 12
    found = gallery.learn().accuracy
    assert found is not None
    assert found.count == 12
    gallery.store.label([gallery.keys[6]], 3 - int(gallery.labels()[6]))
    corrected = gallery.learn().accuracy
    assert corrected is not None
    assert corrected.count == 13, "a correction is a label of one's own"
    assert gallery.store.label([gallery.keys[7]], int(gallery.labels()[7])) == 1
    confirmed = gallery.learn().accuracy
    assert confirmed is not None
    assert confirmed.count == 14, "so is a confirmation"
    gallery.close()


def test_of_many_accepted_labels_some_teach(
    tmp_path: Path, photo: NDArray[np.uint8], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = open_gallery(run, str(make_photos(tmp_path / "photos", photo, 18)))
    names = [entry.name for entry in gallery.entries]
    give(gallery, names[:4], "sky")
    give(gallery, names[4:8], "sea")
    assert gallery.store.accept(gallery.keys[8:16], 1) == 8
    monkeypatch.setattr("selfsight.gallery.state.MOST_ACCEPTED", 3)
    taught, _ = gallery.lessons()
    assert (taught >= 0).sum() == 11
    assert (taught[:8] >= 0).all(), "all that were given"
    assert np.array_equal(taught, gallery.lessons()[0]), "the same ones each time"
    known: list[int] = []

    def counted(
        vectors: NDArray[np.float32], labels: NDArray[np.int64], n: int, strategy: Strategy
    ) -> NDArray[np.int64]:
        known.append(int((labels >= 0).sum()))
        return select(vectors, labels, n, strategy)

    monkeypatch.setattr("selfsight.gallery.state.select", counted)
    assert (sorted(gallery.next(2)), known) == ([16, 17], [11])
    gallery.close()


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never did")


def test_what_fails_behind_the_page_is_said_until_it_succeeds(
    tmp_path: Path, photo: NDArray[np.uint8], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr("selfsight.gallery.state.layout", broken)
        gallery = open_gallery(run, str(make_photos(tmp_path / "photos", photo, 8)))
        wait_until(lambda: "map" in gallery.failures)
        patched.setattr("selfsight.gallery.state.answer", broken)
        give(gallery, ["a/000.jpg"], "sky")
        gallery.trainer.wake()
        wait_until(lambda: "classifier" in gallery.failures)
    assert _state(gallery, "")["failures"] == {
        "map": "The map could not be drawn (another --layout may work): no memory",
        "classifier": "The classifier could not learn (it tries again at the next label): no memory",
    }
    give(gallery, ["b/001.jpg"], "sea")
    gallery.trainer.wake()
    wait_until(lambda: "classifier" not in gallery.failures)
    assert gallery.answers.version == gallery.store.version
    gallery.close()


def test_classes_never_share_a_folder(tmp_path: Path, photo: NDArray[np.uint8], run: Run) -> None:
    gallery = open_gallery(run, str(make_photos(tmp_path / "photos", photo, 8)))
    give(gallery, ["a/000.jpg"], "a/b")
    give(gallery, ["b/001.jpg"], "A_b")  # one folder on a Mac
    with ThreadPoolExecutor(2) as pool:  # pressed twice
        folders = list(pool.map(lambda _: gallery.export_folders(tmp_path / "folders"), range(2)))
    found = sorted(str(link.relative_to(folders[0])) for link in folders[0].rglob("*.jpg"))
    assert found == ["A_b_/001.jpg", "a_b/000.jpg"]
    gallery.close()


def test_pictures_whose_labels_are_elsewhere_are_said(tmp_path: Path, photo: NDArray[np.uint8], run: Run) -> None:
    folder = make_photos(tmp_path / "photos", photo, 8)
    gallery = open_gallery(run, str(folder))
    give(gallery, ["a/000.jpg"], "sky")
    assert labels_elsewhere(run, gallery) == ""
    gallery.close()
    (run.path.parent / "broken" / "gallery" / "x").mkdir(parents=True)
    (run.path.parent / "broken" / "gallery" / "x" / "labels.db").write_text("nothing of that kind")
    moved = folder.rename(tmp_path / "moved")
    gallery = open_gallery(run, str(moved))
    words = labels_elsewhere(run, gallery)
    assert words.startswith("1 of these pictures have labels in ")
    gallery.close()
    gallery = open_gallery(run, str(moved), Path(words.split(" in ")[1].removesuffix(": --labels takes them")))
    assert labelled(gallery) == {"a/000.jpg": "sky"}
    gallery.close()


def test_a_folder_of_links_is_shown_as_large_as_its_files(tmp_path: Path, photo: NDArray[np.uint8], run: Run) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "links").mkdir()
    for i in range(3):
        Image.fromarray(photo[40 * i : 40 * i + 300, :400]).save(tmp_path / "store" / f"{i}.png")
        (tmp_path / "links" / f"{i}.png").symlink_to(tmp_path / "store" / f"{i}.png")
    gallery = open_gallery(run, str(tmp_path / "links"))
    with Image.open(io.BytesIO(_large(gallery, 0))) as image:
        assert image.size == (400, 300)
    Image.fromarray(photo[:300, 200:600]).save(tmp_path / "store" / "0.png")  # edited meanwhile
    with Image.open(io.BytesIO(_large(gallery, 0))) as image:
        assert image.size != (400, 300)
    gallery.close()


def scans(folder: Path, photo: NDArray[np.uint8], factors: dict[int, int]) -> Path:
    """Write crops of 16 bits by their numbers, each as many times as bright as the photo."""
    folder.mkdir(exist_ok=True)
    grey = np.asarray(Image.fromarray(photo).convert("L"), np.float32)
    for i, factor in factors.items():
        crop = grey[40 * i : 40 * i + 64, 60 * i : 60 * i + 64]
        Image.fromarray((crop * factor).astype(np.uint16)).save(folder / f"{i}.png")
    return folder


def test_an_index_keeps_the_range_of_its_first_deep_pictures(
    tmp_path: Path, photo: NDArray[np.uint8], run: Run
) -> None:
    folder = scans(tmp_path / "scans", photo, {0: 3, 1: 4, 2: 5, 3: 6})
    run.index(folder)
    scans(folder, photo, {4: 12, 5: 16, 6: 20})  # later come brighter ones
    gallery = open_gallery(run, str(folder))
    assert run.index(folder).stretch == gallery.images.stretch
    gallery.close()
    for name in ("1.png", "6.png"):
        (hits,) = run.search(folder, [folder / name], 1)
        assert hits[0].entry.name == name
        assert hits[0].similarity > 0.9999, "old and new and what is searched are scaled alike"
    scans(folder, photo, dict.fromkeys(range(7), 30))  # all of them written anew
    again = open_images(folder, image_size=16, cache=False)
    assert run.index(folder).stretch == again.stretch != gallery.images.stretch


def test_deep_pictures_are_shown_and_searched_by_their_sets_range(
    tmp_path: Path, photo: NDArray[np.uint8], run: Run
) -> None:
    folder = scans(tmp_path / "scans", photo, {i: 3 + i for i in range(8)})  # up to 765 .. 2,550
    gallery = open_gallery(run, str(folder))
    found = _search(gallery, (folder / "2.png").read_bytes())
    assert found[0][0] == 2
    assert found[0][1] > 0.9999, "it is the same picture"
    (hits,) = run.search(folder, [folder / "2.png"], 1)
    assert hits[0].entry.name == "2.png"
    assert hits[0].similarity > 0.9999
    shown = np.asarray(Image.open(io.BytesIO(_large(gallery, 7))).convert("L"))
    assert 20 < shown.mean() < 235
    assert shown.std() > 20
    give(gallery, ["0.png", "1.png"], "upper")
    give(gallery, ["6.png", "7.png"], "lower")
    model = gallery.export_classifier(tmp_path / "model")
    assert RunFolder(model).config()["stretch"] is not None
    assert gallery.export_classifier(model) == model, "its own is replaced"
    RunFolder(tmp_path / "trained").write_config({"task": "classification"})
    with pytest.raises(SelfsightError, match="trained: holds a model that this page did not make"):
        gallery.export_classifier(tmp_path / "trained")
    gallery.close()
    lines = []
    for data in (folder, folder / "2.png"):
        predict(model, str(data), PredictConfig(out=tmp_path / data.name))
        lines.append((tmp_path / data.name / "predictions.csv").read_text().splitlines())
    assert lines[0][3] == lines[1][1], "alone an image gets the answer that it gets among others"


def test_labels_of_a_table_or_a_folder_a_class_are_taken(tmp_path: Path, photo: NDArray[np.uint8], run: Run) -> None:
    folder = make_photos(tmp_path / "photos", photo, 8)
    gallery = open_gallery(run, str(folder))
    give(gallery, ["a/000.jpg"], "sky")
    copy(folder / "a" / "000.jpg", tmp_path / "other.jpg")
    lines = ["path,label", "photos/a/000.jpg,sea", f"{folder}/b/001.jpg,sea", "photos/c/002.jpg,", "other.jpg,sea"]
    (tmp_path / "filled.csv").write_text("\n".join(lines))
    assert gallery.take(list_images(str(tmp_path / "filled.csv"))) == (1, 3)
    assert labelled(gallery) == {"a/000.jpg": "sky", "b/001.jpg": "sea"}
    gallery.store.undo()
    assert gallery.take(list_images(str(folder))) == (7, 8)
    assert labelled(gallery)["d/007.jpg"] == "d"
    (tmp_path / "none.csv").write_text("path\nphotos/a/000.jpg")
    with pytest.raises(SelfsightError, match=r"none\.csv: holds no labels of image files"):
        gallery.take(list_images(str(tmp_path / "none.csv")))
    gallery.close()
