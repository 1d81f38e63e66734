"""Labels given by hand: in SQLite, saved before a click is confirmed, every step of them undoable."""

import json
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsight.errors import SelfsightError

SCHEMA = """
CREATE TABLE IF NOT EXISTS classes (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
CREATE TABLE IF NOT EXISTS labels (image TEXT PRIMARY KEY, class INTEGER NOT NULL REFERENCES classes);
CREATE INDEX IF NOT EXISTS by_class ON labels (class);
CREATE TABLE IF NOT EXISTS steps (id INTEGER PRIMARY KEY, words TEXT, changes TEXT, undone INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS version (number INTEGER);
INSERT INTO version SELECT 0 WHERE NOT EXISTS (SELECT * FROM version);
"""
ACCEPTED = "accepted labels"
"""What a step of labels is called that a classifier predicted."""
LONGEST, MOST_CLASSES = 80, 200
"""Characters of a class name, and classes."""
UNWRITTEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of what no name holds; joiners (Cf) belong to Persian and Indic words and to emoji."""


@dataclass(frozen=True)
class Class:
    """A class made by hand."""

    id: int
    """Never used again, even if the class is removed."""
    name: str
    count: int
    """Images that carry it."""


def labelled(path: Path) -> set[str]:
    """Return the keys of the images that have a label in another store, of which nothing is changed."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return {image for (image,) in database.execute("SELECT image FROM labels")}
    except sqlite3.Error:  # damaged, or of another program
        return set()


class Store:
    """Classes, labels and steps; a step is a list of changes with what was before, so that it can go both ways."""

    def __init__(self, path: Path) -> None:
        """Open the database at `path`, or begin one; SelfsightError if it can't be."""
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            self._database.execute("PRAGMA journal_mode = DELETE")  # one file, which can be copied at any time
            self._database.execute("PRAGMA synchronous = EXTRA")  # what was confirmed survives a power cut, too
            self._database.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise SelfsightError(f"{path}: labels cannot be kept here: {error}") from error

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        return int(self._one("SELECT number FROM version")[0])

    def classes(self) -> list[Class]:
        """Return the classes in the order in which they were made."""
        query = """SELECT id, name, (SELECT count(*) FROM labels WHERE class = classes.id) FROM classes
                   WHERE name IS NOT NULL ORDER BY id"""
        return [Class(*row) for row in self._all(query)]

    def labels(self) -> dict[str, int]:
        """Return the class's id of each labelled image, by the image's key."""
        return dict(self._all("SELECT image, class FROM labels"))

    def add_class(self, name: str) -> int:
        """Make a class and return its id; SelfsightError for a name that is empty, too long or taken."""
        with self._step(f"class {name.strip()}") as change:
            name = self._free_name(name)
            if len(self.classes()) >= MOST_CLASSES:
                raise SelfsightError(f"there are {MOST_CLASSES} classes, no more can be made")
            identity = self._free_id()
            change.class_name(identity, None, name)
            return identity

    def rename_class(self, identity: int, name: str) -> None:
        """Give a class another name; SelfsightError as in `add_class`, or if there is no such class."""
        with self._step(f"name {name.strip()}") as change:
            before = self._name(identity)
            if before != name.strip():
                change.class_name(identity, before, self._free_name(name))

    def remove_class(self, identity: int) -> None:
        """Remove a class and its labels; SelfsightError if there is none."""
        with self._step("removing a class") as change:
            name = self._name(identity)
            for (image,) in self._all("SELECT image FROM labels WHERE class = ? ORDER BY image", identity):
                change.label(image, identity, None)
            change.class_name(identity, name, None)

    def label(self, images: Iterable[str], identity: int | None) -> int:
        """Give images a class, or with None take theirs away; return how many that changed.

        Raises SelfsightError if there is no such class.
        """
        return self._label("labels", images, identity, over=True)

    def accept(self, images: Iterable[str], identity: int) -> int:
        """Give those of the images that have none a class that was predicted; else as `label`."""
        return self._label(ACCEPTED, images, identity, over=False)

    def take(self, names: Mapping[str, str]) -> int:
        """Give images that have no class the one of this name, which is made if there is none; return how many.

        It is one step. Raises SelfsightError as `add_class` does.
        """
        with self._step("labels of a file") as change:
            known, labels, free = {found.name: found.id for found in self.classes()}, self.labels(), self._free_id()
            for image, given in names.items():
                name = " ".join(given.split())
                if image in labels:
                    continue
                if name not in known:
                    if len(known) >= MOST_CLASSES:
                        raise SelfsightError(f"class {name}: there are {MOST_CLASSES} classes, no more can be made")
                    change.class_name(free, None, self._free_name(name))
                    known[name], free = free, free + 1
                change.label(image, None, known[name])
            return len(change.labels)

    def accepted(self) -> set[str]:
        """Return the images whose class was predicted and accepted, not given."""
        found: set[str] = set()
        query = """SELECT words, changes FROM steps WHERE NOT undone
                   AND id >= (SELECT min(id) FROM steps WHERE words = ?) ORDER BY id"""
        for words, text in self._all(query, ACCEPTED):
            images = {image for image, _, after in json.loads(text)["labels"] if after is not None}
            found = found | images if words == ACCEPTED else found - images
        return found

    def _label(self, words: str, images: Iterable[str], identity: int | None, *, over: bool) -> int:
        with self._step(words) as change:
            if identity is not None:
                self._name(identity)
            guessed: set[str] | None = None
            for image in dict.fromkeys(images):
                found = self._one("SELECT class FROM labels WHERE image = ?", image)
                before = None if found is None else int(found[0])
                if before == identity and before is not None and over:  # what was accepted is confirmed
                    guessed = self.accepted() if guessed is None else guessed
                    if image in guessed:
                        change.label(image, before, identity)
                elif before != identity and (over or before is None):
                    change.label(image, before, identity)
            return len(change.labels)

    def translate(self, keys: Mapping[str, str]) -> None:
        """Give the images of these keys others, in the labels and in the steps that can be undone."""
        if not keys.keys() & self.labels().keys():
            return
        with self._transaction():
            for old in keys.keys() & self.labels().keys():
                self._database.execute("UPDATE OR REPLACE labels SET image = ? WHERE image = ?", (keys[old], old))
            for identity, text in self._all("SELECT id, changes FROM steps"):
                changes = json.loads(text)
                changes["labels"] = [[keys.get(image, image), *rest] for image, *rest in changes["labels"]]
                self._database.execute("UPDATE steps SET changes = ? WHERE id = ?", (json.dumps(changes), identity))

    def undo(self) -> str | None:
        """Take the last step back; return what it was, None if there is none."""
        return self._turn("SELECT id, words, changes FROM steps WHERE NOT undone ORDER BY id DESC LIMIT 1", 1)

    def redo(self) -> str | None:
        """Take the last undone step again; return what it was, None if there is none."""
        return self._turn("SELECT id, words, changes FROM steps WHERE undone ORDER BY id LIMIT 1", 0)

    def can(self) -> tuple[bool, bool]:
        """Return whether there is a step to undo, and one to redo."""
        undone = {bool(row[0]) for row in self._all("SELECT DISTINCT undone FROM steps")}
        return False in undone, True in undone

    def _turn(self, query: str, undone: int) -> str | None:
        with self._transaction():
            found = self._one(query)
            if found is None:
                return None
            identity, words, changes = found
            self._apply(json.loads(changes), back=bool(undone))
            self._database.execute("UPDATE steps SET undone = ? WHERE id = ?", (undone, identity))
            return str(words)

    @contextmanager
    def _step(self, words: str) -> Iterator["_Changes"]:
        """Collect changes; at the end they are made, and kept as one step, all or none."""
        with self._transaction():
            changes = _Changes()
            yield changes
            if not changes:
                return
            self._apply({"labels": changes.labels, "classes": changes.classes}, back=False)
            self._database.execute("DELETE FROM steps WHERE undone")
            text = json.dumps({"labels": changes.labels, "classes": changes.classes})
            self._database.execute("INSERT INTO steps (words, changes) VALUES (?, ?)", (words, text))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("UPDATE version SET number = number + 1")
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise

    def _apply(self, changes: Mapping[str, Sequence[Sequence[Any]]], *, back: bool) -> None:
        for identity, before, after in changes["classes"]:
            name = before if back else after
            query = "INSERT INTO classes VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET name = excluded.name"
            self._database.execute(query, (identity, name))
        for image, before, after in changes["labels"]:
            identity = before if back else after
            if identity is None:
                self._database.execute("DELETE FROM labels WHERE image = ?", (image,))
            else:
                query = "INSERT INTO labels VALUES (?, ?) ON CONFLICT (image) DO UPDATE SET class = excluded.class"
                self._database.execute(query, (image, identity))

    def _name(self, identity: int) -> str:
        found = self._one("SELECT name FROM classes WHERE id = ?", identity)
        if found is None or found[0] is None:
            raise SelfsightError(f"there is no class {identity}")
        return str(found[0])

    def _free_id(self) -> int:
        return int(self._one("SELECT coalesce(max(id), 0) + 1 FROM classes")[0])

    def _free_name(self, name: str) -> str:
        name = " ".join(name.split())
        if not name or len(name) > LONGEST or any(unicodedata.category(letter) in UNWRITTEN for letter in name):
            raise SelfsightError(f"a class needs a name of 1 to {LONGEST} characters")
        if self._one("SELECT 1 FROM classes WHERE name = ?", name):
            raise SelfsightError(f"there is a class {name} already")
        return name

    def _one(self, query: str, *values: object) -> Any:
        with self._lock:
            return self._database.execute(query, values).fetchone()

    def _all(self, query: str, *values: object) -> Sequence[Any]:
        with self._lock:
            return self._database.execute(query, values).fetchall()


class _Changes:
    """What a step changes, each with what was before."""

    def __init__(self) -> None:
        self.labels: list[tuple[str, int | None, int | None]] = []
        self.classes: list[tuple[int, str | None, str | None]] = []

    def __bool__(self) -> bool:
        return bool(self.labels or self.classes)

    def label(self, image: str, before: int | None, after: int | None) -> None:
        self.labels.append((image, before, after))

    def class_name(self, identity: int, before: str | None, after: str | None) -> None:
        self.classes.append((identity, before, after))
