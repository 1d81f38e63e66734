import os
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from selfsight.backbones import Backbone, create, plan
from selfsight.data import ImageSet, in_order, open_images
from selfsight.evaluate import features
from selfsight.evaluate.features import extract
from selfsight.search import Index, update

CPU = torch.device("cpu")


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return create(plan("test_resnet", 32, 3, (0.5,) * 3, (0.25,) * 3)).eval()


def gallery(folder: Path, photo: NDArray[np.uint8], n: int = 12) -> Path:
    for i in range(n):
        file = folder / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[10 * i : 10 * i + 64, 20 * i : 20 * i + 96]).save(file)
    return folder


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the images that go through a network."""
    seen: list[int] = []

    def counting(images: object, rows: NDArray[np.int64], *more: object) -> object:
        seen.append(len(rows))
        return in_order(images, rows, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "in_order", counting)
    return seen


def test_only_what_is_new_or_changed_is_embedded(
    tmp_path: Path, photo: NDArray[np.uint8], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = gallery(tmp_path / "photos", photo), counted(monkeypatch)
    index = Index(tmp_path / "index")
    done = update(index, backbone, folder, CPU)
    assert (done.added, done.changed, done.removed, done.kept, len(index)) == (12, 0, 0, 0, 12)
    done = update(index, backbone, folder, CPU)
    assert (done.added, done.changed, done.removed, done.kept) == (0, 0, 0, 12)
    (folder / "a" / "00.png").unlink()
    Image.fromarray(photo[200:264, 200:296]).save(folder / "b" / "new.png")
    Image.fromarray(photo[220:284, 200:296]).save(folder / "b" / "01.png")
    os.utime(folder / "b" / "01.png", ns=(0, 0))
    done = update(index, backbone, folder, CPU)
    assert (done.added, done.changed, done.removed, done.kept) == (1, 1, 1, 10)
    assert seen == [12, 2]
    images = open_images(folder, image_size=32, channels=3)
    assert [entry.name for entry in index.entries()] == list(images.names)
    direct = extract(backbone, images, np.arange(12), device=CPU)
    assert np.allclose(index.vectors(images.names), direct, atol=1e-5)
    assert {entry.label for entry in index.entries()} == {"a", "b"}


def test_what_cannot_be_read_is_listed_and_left_out(
    tmp_path: Path, photo: NDArray[np.uint8], backbone: Backbone
) -> None:
    folder = gallery(tmp_path / "photos", photo)
    (folder / "a" / "broken.png").write_bytes(b"no image")
    index = Index(tmp_path / "index")
    done = update(index, backbone, folder, CPU)
    assert (done.added, [skip.name for skip in done.skipped]) == (12, ["a/broken.png"])
    cut = (folder / "b" / "01.png").read_bytes()
    (folder / "b" / "cut.png").write_bytes(cut[: len(cut) // 2])  # its header is sound
    (folder / "b" / "03.png").write_bytes(cut[: len(cut) // 2])  # was sound, is no more
    done = update(index, backbone, folder, CPU)
    assert {skip.name for skip in done.skipped} == {"a/broken.png", "b/cut.png", "b/03.png"}
    assert (done.added, done.changed, done.kept, len(index)) == (0, 0, 11, 11)
    assert "b/03.png" not in {entry.name for entry in index.entries()}


def test_labels_follow_the_data(tmp_path: Path, photo: NDArray[np.uint8], backbone: Backbone) -> None:
    folder, table = gallery(tmp_path / "photos", photo), tmp_path / "labels.csv"
    files = sorted(folder.rglob("*.png"))
    table.write_text("path,label\n" + "".join(f"{file},{'x' if i < 3 else ''}\n" for i, file in enumerate(files)))
    index = Index(tmp_path / "index")
    update(index, backbone, table, CPU)
    assert [entry.label for entry in index.entries()] == ["x"] * 3 + [""] * 9
    table.write_text("path,label\n" + "".join(f"{file},{'' if i < 1 else 'y'}\n" for i, file in enumerate(files)))
    done = update(index, backbone, table, CPU)
    assert (done.added, done.changed, done.kept) == (0, 0, 12)
    assert [entry.label for entry in index.entries()] == [""] + ["y"] * 11


def test_arrays_are_known_by_their_pixels(tmp_path: Path, backbone: Backbone) -> None:
    images = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    index = Index(tmp_path / "index")
    assert update(index, backbone, tmp_path / "a.npz", CPU).added == 6
    images[2] = 255 - images[2]
    np.savez(tmp_path / "a.npz", images=images)
    done = update(index, backbone, tmp_path / "a.npz", CPU)
    assert (done.added, done.changed, done.kept) == (0, 1, 5)


def test_an_interrupted_update_goes_on(
    tmp_path: Path, photo: NDArray[np.uint8], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = gallery(tmp_path / "photos", photo)
    index = Index(tmp_path / "index")
    whole = Index(tmp_path / "whole")
    update(whole, backbone, folder, CPU)
    put = Index.put

    def once(self: Index, *what: object) -> None:
        put(self, *what)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr("selfsight.search.sync.PUT", 1)
    monkeypatch.setattr("selfsight.search.sync.BATCH", 5)
    monkeypatch.setattr(Index, "put", once)
    with pytest.raises(KeyboardInterrupt):
        update(index, backbone, folder, CPU)
    monkeypatch.setattr(Index, "put", put)
    assert len(index) == 5
    done = update(index, backbone, folder, CPU)
    assert (done.added, done.kept) == (7, 5)
    assert index.entries() == whole.entries()
    names = [entry.name for entry in whole.entries()]
    assert np.allclose(index.vectors(names), whole.vectors(names), atol=1e-5)


def test_an_image_that_a_table_names_twice_is_there_once(
    tmp_path: Path, photo: NDArray[np.uint8], backbone: Backbone
) -> None:
    files = sorted(gallery(tmp_path / "photos", photo, 4).rglob("*.png"))
    table, index = tmp_path / "boxes.csv", Index(tmp_path / "index")
    table.write_text("path\n" + "".join(f"{file}\n{file}\n" for file in files))
    for _ in range(2):
        update(index, backbone, table, CPU)
        assert [entry.file for entry in index.entries()] == [str(file) for file in files]
        os.utime(files[0], ns=(0, 0))


def test_a_file_whose_name_is_not_utf8_is_listed(tmp_path: Path, photo: NDArray[np.uint8], backbone: Backbone) -> None:
    folder = gallery(tmp_path / "photos", photo, 4)
    (folder / "a" / "00.png").rename(os.fsdecode(os.fsencode(folder / "a") + b"/caf\xe9.png"))
    index = Index(tmp_path / "index")
    done = update(index, backbone, folder, CPU)
    assert (done.added, len(index)) == (3, 3)
    assert [skip.reason for skip in done.skipped] == ["its name is not UTF-8; rename it to have it found"]


def test_an_image_that_two_processes_put_at_once_is_there_once(
    tmp_path: Path, photo: NDArray[np.uint8], backbone: Backbone
) -> None:
    folder, index = gallery(tmp_path / "photos", photo), Index(tmp_path / "index")
    update(index, backbone, folder, CPU)
    table = lancedb.connect(tmp_path / "index").open_table("images")
    table.add(table.to_arrow().slice(0, 3))
    assert len(index) == 15
    done = update(index, backbone, folder, CPU)
    assert (done.added, done.kept, len(index)) == (3, 9, 12)
    assert len({entry.name for entry in index.entries()}) == 12


def test_what_is_not_in_the_index_is_not_deleted_from_it(
    tmp_path: Path, photo: NDArray[np.uint8], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, index = gallery(tmp_path / "photos", photo, 4), Index(tmp_path / "index")
    (folder / "a" / "broken.png").write_bytes(b"no image")
    deleted: list[str] = []
    monkeypatch.setattr(Index, "delete", lambda self, names: deleted.extend(names))
    for _ in range(2):
        done = update(index, backbone, folder, CPU)
        assert [skip.name for skip in done.skipped] == ["a/broken.png"]
    assert deleted == []


def test_a_file_that_comes_during_an_update_is_left_to_the_next(
    tmp_path: Path, photo: NDArray[np.uint8], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, index = gallery(tmp_path / "photos", photo), Index(tmp_path / "index")

    def late(data: Path, **settings: Any) -> ImageSet:
        Image.fromarray(photo[200:264, 200:296]).save(folder / "a" / "late.png")
        return open_images(data, **settings)

    monkeypatch.setattr("selfsight.search.sync.open_images", late)
    done = update(index, backbone, folder, CPU)
    assert (done.added, len(index)) == (12, 12)
    done = update(index, backbone, folder, CPU)
    assert (done.added, done.kept, len(index)) == (1, 12, 13)
