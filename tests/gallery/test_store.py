import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from shutil import copy

import pytest

from selfsight.errors import SelfsightError
from selfsight.gallery.store import Store


def test_labels_are_there_after_closing(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "labels.db")
    cat, dog = store.add_class("cat"), store.add_class("  big   dog ")
    assert store.label(["x", "y", "x"], cat) == 2
    assert store.label(["y", "z"], dog) == 2
    assert store.label(["z"], dog) == 0
    store.close()
    again = Store(tmp_path / "a" / "labels.db")
    assert again.labels() == {"x": cat, "y": dog, "z": dog}
    assert [(c.name, c.count) for c in again.classes()] == [("cat", 1), ("big dog", 2)]


def test_every_step_can_be_taken_back_and_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    assert store.undo() is None
    cat = store.add_class("cat")
    store.label(["x", "y"], cat)
    dog = store.add_class("dog")
    store.label(["y", "z"], dog)
    store.rename_class(dog, "wolf")
    store.remove_class(cat)
    store.label(["z"], None)

    def now() -> tuple[object, ...]:
        return store.labels(), [(c.id, c.name) for c in store.classes()]

    states = [now()]
    while store.undo():
        states.append(now())
    assert states[0] == ({"y": dog}, [(dog, "wolf")])
    assert states[1] == ({"y": dog, "z": dog}, [(dog, "wolf")])
    assert states[2] == ({"x": cat, "y": dog, "z": dog}, [(cat, "cat"), (dog, "wolf")])
    assert states[-1] == ({}, [])
    assert (len(states), store.can()) == (8, (False, True))
    again = [now()]
    while store.redo():
        again.append(now())
    assert again == states[::-1]
    store.undo()
    store.label(["q"], dog)
    assert store.can() == (True, False), "a new step ends what could be taken again"


def test_a_class_is_never_taken_for_a_removed_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    first = store.add_class("cat")
    store.remove_class(first)
    assert store.add_class("cat") != first
    with pytest.raises(SelfsightError, match=f"no class {first}"):
        store.label(["x"], first)
    assert store.labels() == {}


@pytest.mark.parametrize("name", ["", "   ", "x" * 81, "a\nb\0", "cat", " cat "])
def test_a_class_needs_a_name_of_its_own(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "labels.db")
    store.add_class("cat")
    version = store.version
    with pytest.raises(SelfsightError, match=r"a class needs a name|there is a class cat"):
        store.add_class(name)
    assert (store.version, len(store.classes())) == (version, 1)


@pytest.mark.parametrize(
    "name", ["\u0645\u06cc\u200c\u062e\u0648", "\u0915\u094d\u200d\u0937", "\U0001f469\u200d\U0001f680"]
)
def test_a_class_is_named_in_any_script(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "labels.db")
    store.add_class(name)
    assert [found.name for found in store.classes()] == [name]


def test_the_one_file_holds_all_labels_at_any_time(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "labels.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")  # as earlier versions did
        database.execute("CREATE TABLE other (number INTEGER)")
    store = Store(tmp_path / "labels.db")
    store.label(["x"], store.add_class("cat"))
    assert [file.name for file in tmp_path.iterdir()] == ["labels.db"]
    copy(tmp_path / "labels.db", tmp_path / "copy.db")
    assert Store(tmp_path / "copy.db").labels() == store.labels() == {"x": 1}


def test_names_are_never_taken_for_commands(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    odd = ["'; DROP TABLE labels; --", 'a"b', "<script>alert(1)</script>", "ü/雪.png"]
    identity = store.add_class("Robert'); DROP TABLE classes; --")
    store.label(odd, identity)
    assert store.labels() == dict.fromkeys(odd, identity)


def test_what_was_confirmed_survives_a_kill(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from selfsight.gallery.store import Store
store = Store(Path(sys.argv[1]))
cat = store.add_class("cat")
for i in range(10_000):
    store.label([f"image {i}"], cat)
    print(i, flush=True)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "labels.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        for line in job.stdout:
            if int(line) >= 50:
                break
        job.send_signal(signal.SIGKILL)
        confirmed = max([int(line), *map(int, job.stdout.read().split())])
    labels = Store(tmp_path / "labels.db").labels()
    assert {f"image {i}" for i in range(confirmed + 1)} <= labels.keys()
    assert len(labels) <= confirmed + 2, "at most one was saved and not yet confirmed"


def test_a_place_that_cannot_hold_labels_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SelfsightError, match="labels cannot be kept here"):
        Store(tmp_path / "file" / "labels.db")
    (tmp_path / "other.db").write_text("this is no database, but long enough to be read as one" * 100)
    with pytest.raises(SelfsightError, match=r"other\.db: labels cannot be kept"):
        Store(tmp_path / "other.db")


def test_images_can_be_known_by_other_keys(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    cat = store.add_class("cat")
    store.label(["a.jpg", "copy of a.jpg", "b.jpg"], cat)
    store.translate({"a.jpg": "1f", "copy of a.jpg": "1f", "c.jpg": "3f"})
    assert store.labels() == {"1f": cat, "b.jpg": cat}
    assert store.undo() == "labels"
    assert store.labels() == {}, "an older step is of the same images"
    store.redo()
    assert store.labels() == {"1f": cat, "b.jpg": cat}


def test_labels_of_a_file_are_one_step_and_replace_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    cat = store.add_class("cat")
    store.label(["x"], cat)
    assert store.take({"x": "dog", "y": " big  dog", "z": "cat", "w": "big dog"}) == 3
    names = {found.id: found.name for found in store.classes()}
    assert {image: names[k] for image, k in store.labels().items()} == {
        "x": "cat", "y": "big dog", "z": "cat", "w": "big dog",
    }  # fmt: skip
    assert store.take({"y": "cat"}) == 0
    store.undo()
    assert store.labels() == {"x": cat}
    assert [found.name for found in store.classes()] == ["cat"]
    with pytest.raises(SelfsightError, match="there are 200 classes"):
        store.take({str(i): f"class {i}" for i in range(200)})
    with pytest.raises(SelfsightError, match="a class needs a name"):
        store.take({"v": "x" * 81})
    assert store.labels() == {"x": cat}, "all or none"
