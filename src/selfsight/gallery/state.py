"""What a gallery shows: the images, their places on the map, the labels, and what the classifier makes of them."""

import hashlib
import json
import os
import shutil
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from selfsight.backbones import Backbone, spec_to_json
from selfsight.data import ImageSet
from selfsight.data.images import Skipped
from selfsight.data.listing import Listing
from selfsight.errors import SelfsightError
from selfsight.evaluate.features import extract
from selfsight.evaluate.finetune import LinearHead
from selfsight.gallery.learn import Answers, Trainer, answer
from selfsight.gallery.store import Store
from selfsight.run import RunFolder, replace_file, write_table
from selfsight.search.duplicates import DuplicateConfig, Group, duplicates
from selfsight.search.index import Entry, Index
from selfsight.search.layout import MapKind, clusters, layout
from selfsight.search.select import select
from selfsight.tasks.classification import ClassificationConfig
from selfsight.tasks.classifier import Classifier

Order = Literal["name", "date", "cluster", "doubt", "class"]
ENOUGH = 20
"""Labels from which the classifier's doubts say more than what images are typical."""
KNOWN = 1_000
"""Of how many labelled images at most it is minded where they are: clusters of all of them would take too long."""
LOOKED_AT = 10_000
"""Of how many images at most the next to label are chosen: choosing among all would take too long."""
MOST_ACCEPTED = 2000
"""Of the labels that were accepted, so many teach: more add little, and each fit would take longer."""


class Gallery:
    """The images of an index, in the order of their names: an image's number is its place in it."""

    def __init__(
        self,
        index: Index,
        images: ImageSet,
        backbone: Backbone,
        folder: RunFolder,
        store: Store,
        map_kind: MapKind = "umap",
    ) -> None:
        """Show the images that are both in the index and in the image set; SelfsightError if there is none."""
        place = {name: row for row, name in enumerate(images.names)}
        self.index, self.images, self.backbone, self.folder, self.store = index, images, backbone, folder, store
        self.entries: list[Entry] = [entry for entry in index.entries() if entry.name in place]
        if not self.entries:
            raise SelfsightError(f"{images.source}: no image to show")
        self.rows = np.array([place[entry.name] for entry in self.entries])
        self.number = {entry.name: i for i, entry in enumerate(self.entries)}
        # Labels belong to what a picture shows: they follow a file that is renamed, and stay away from another one
        # that takes its name. Exact copies share theirs.
        self.keys = [entry.content for entry in self.entries]
        _, self._first = np.unique(self.keys, return_index=True)
        store.translate({entry.name: entry.content for entry in self.entries})  # from when names were the keys
        self.vectors = index.vectors([entry.name for entry in self.entries])
        self.map_kind = map_kind
        self.places: NDArray[np.float32] | None = None
        self.cluster: NDArray[np.int64] | None = None
        self._copies: list[Group] | None = None
        self._lock = threading.Lock()
        self._learning, self._exporting = threading.Lock(), threading.Lock()
        self.failures: dict[str, str] = {}  # what the page says of work that went wrong behind it
        self.answers: Answers = self._answer(store.version)
        self.trainer = Trainer(self._learn_anew)
        self._mapper = threading.Thread(target=self._draw_map, name="selfsight-map", daemon=True)
        self._mapper.start()

    @property
    def source(self) -> str:
        """What the user passed."""
        return self.images.source

    @property
    def skipped(self) -> Sequence[Skipped]:
        """Files that could not be read."""
        return self.images.skipped

    def labels(self) -> NDArray[np.int64]:
        """Return (N,) the class's id of each image, -1 without one."""
        known = self.store.labels()
        return np.array([known.get(key, -1) for key in self.keys], np.int64)

    def lessons(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return (N,) the labels to learn from, at most MOST_ACCEPTED of them accepted, and (N,) which were given.

        Of exact copies one has a label, or cross-validation would test what it taught.
        """
        labels, guessed = self.labels(), self.store.accepted()
        given = np.array([key not in guessed for key in self.keys])
        found = np.full(len(labels), -1)
        found[self._first] = labels[self._first]
        order = np.random.default_rng(0).permutation(len(labels))
        found[order[(found[order] >= 0) & ~given[order]][MOST_ACCEPTED:]] = -1
        return found, given

    def elsewhere(self) -> int:
        """Return how many labels belong to pictures that are not here: removed, edited, or never of this data."""
        return len(self.store.labels().keys() - set(self.keys))

    def learn(self) -> Answers:
        """Fit the classifier to the labels as they are now, unless it is, and return its answers."""
        with self._learning:  # who comes meanwhile waits, and finds it done
            version = self.store.version
            if version != self.answers.version:
                self.answers = self._answer(version)
            return self.answers

    def _learn_anew(self) -> None:
        with self._noting("classifier", "The classifier could not learn (it tries again at the next label)"):
            self.learn()

    def _draw_map(self) -> None:
        with self._noting("map", "The map could not be drawn (another --layout may work)"):
            self._lay_out()

    @contextmanager
    def _noting(self, part: str, words: str) -> Iterator[None]:
        """Let the page say what goes wrong here, where nobody waits for an answer, until it goes right."""
        try:
            yield
            self.failures.pop(part, None)
        except Exception as error:
            traceback.print_exc()
            self.failures[part] = f"{words}: {' '.join(str(error).split())[:200] or type(error).__name__}"

    def _answer(self, version: int) -> Answers:
        labels, given = self.lessons()
        return answer(self.vectors, labels, version, given)

    def close(self) -> None:
        """Stop the threads and close the labels."""
        self.trainer.end()
        self.store.close()

    def order(self, by: Order) -> NDArray[np.int64]:
        """Return the numbers (N,) of all images: by name, the newest first, by cluster, by doubt or by class.

        Images whose date is unknown come last; by doubt, those with a label come last.
        """
        n = len(self.entries)
        if by == "date":
            times = np.array([np.datetime64(e.taken or "NaT", "us") for e in self.entries]).astype(np.int64)
            return np.argsort(np.where(times == np.iinfo(np.int64).min, np.iinfo(np.int64).max, -times), kind="stable")
        if by == "cluster" and self.cluster is not None:
            return np.argsort(self.cluster, kind="stable")
        if by == "doubt":
            return np.lexsort((self.answers.margin, self.labels() >= 0))
        if by == "class":
            labels, answers = self.labels(), self.answers
            shown = np.where(labels >= 0, labels, answers.best)
            return np.lexsort((-np.where(labels >= 0, 1.0, answers.confidence), np.where(shown < 0, 1 << 30, shown)))
        return np.arange(n)

    def like(self, vector: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """Return the `k` images most similar to a vector (D,), the most similar first, each with its cosine."""
        (hits,) = self.index.search(vector[None], k)
        # Another process may have added images to the index since: they are not shown.
        known = [hit for hit in hits if hit.entry.name in self.number]
        return [(self.number[hit.entry.name], round(hit.similarity, 4)) for hit in known]

    def next(self, n: int) -> NDArray[np.int64]:
        """Return up to `n` images that are most worth a label."""
        free = np.flatnonzero(self.labels() < 0)
        if not len(free):
            return free
        labels, _ = self.lessons()
        known = np.flatnonzero(labels >= 0)
        random = np.random.default_rng(len(known))
        known = np.sort(random.permutation(known)[:KNOWN])
        some = np.sort(random.permutation(free)[:LOOKED_AT])
        rows = np.concatenate([known, some])
        enough = len(known) >= ENOUGH and len(np.unique(labels[known])) > 1
        chosen = select(self.vectors[rows], labels[rows], min(n, len(some)), "both" if enough else "typical")
        return np.asarray(rows[chosen])

    def copies(self) -> list[Group]:
        """Return the groups of duplicates; they are looked for once."""
        with self._lock:
            if self._copies is None:
                self._copies = duplicates(self.index, DuplicateConfig())
            return self._copies

    def accept(self, identity: int, confidence: float) -> int:
        """Label all images without a label that the classifier is so sure to be of a class; return how many.

        It learns from the last label first, where it has not yet.
        """
        answers = self.learn()
        sure = (answers.best == identity) & (answers.confidence >= confidence)
        return self.store.accept((self.keys[i] for i in np.flatnonzero(sure)), identity)

    def take(self, listing: Listing) -> tuple[int, int]:
        """Take the labels of another data set for the images of this one that have none; return how many, of how many.

        The second counts labels, whether or not their files are images of this data set. Raises SelfsightError for data
        without labels or without files.
        """
        if listing.labels is None or listing.files is None:
            raise SelfsightError(f"{listing.source}: holds no labels of image files")
        keys = {os.path.realpath(found.file): found.content for found in self.entries if found.file}
        files = [os.path.realpath(file) for file in listing.files]
        given = {file: int(label) for file, label in zip(files, listing.labels, strict=True) if label >= 0}
        here = {keys[file]: listing.classes[label] for file, label in given.items() if file in keys}
        return self.store.take(here), len(given)

    def keys_of(self, numbers: Iterable[int]) -> list[str]:
        """Return these images' keys in the store; SelfsightError for a number that no image has."""
        found = list(numbers)
        for number in found:
            if not 0 <= number < len(self.entries):
                raise SelfsightError(f"there is no image {number}")
        return [self.keys[number] for number in found]

    def table(self) -> list[tuple[str, str]]:
        """Return (path, class name) of each labelled image, by name."""
        classes = {found.id: found.name for found in self.store.classes()}
        labels = self.labels()
        return [
            (self.entries[i].file or self.entries[i].name, classes[int(labels[i])]) for i in np.flatnonzero(labels >= 0)
        ]

    def export_csv(self, path: Path) -> Path:
        """Write the labels as a table with path and label, which `selfsight evaluate` and `train` read."""
        write_table(path, ["path", "label"], self.table())
        return path

    def export_coco(self, path: Path) -> Path:
        """Write the labels in COCO's format: each one box, as large as its image."""
        classes = self.store.classes()
        labels = self.labels()
        rows = np.flatnonzero(labels >= 0).tolist()
        content = {
            "images": [
                {"id": i + 1, "file_name": e.file or e.name, "width": e.width, "height": e.height}
                for i in rows
                for e in [self.entries[i]]
            ],
            "annotations": [
                {
                    "id": place,
                    "image_id": i + 1,
                    "category_id": int(labels[i]),
                    "bbox": [0, 0, self.entries[i].width, self.entries[i].height],
                    "area": self.entries[i].width * self.entries[i].height,
                    "iscrowd": 0,
                }
                for place, i in enumerate(rows, 1)
            ],
            "categories": [{"id": found.id, "name": found.name} for found in classes],
        }
        replace_file(path, lambda p: p.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8"))
        return path

    def export_folders(self, folder: Path) -> Path:
        """Make a folder a class with links to its images; SelfsightError for data that has no files.

        A folder there is replaced as a whole; SelfsightError where it holds files that are not such links.
        """
        if self.images.files is None:
            raise SelfsightError(f"{self.source}: holds no files to link to")
        building = folder.with_name(f".{folder.name}.{os.getpid()}")
        with self._exporting:  # pressed twice, it is done twice, one after the other
            if own := next((file for file in folder.rglob("*") if not file.is_symlink() and not file.is_dir()), None):
                raise SelfsightError(f"{own}: is no link to an image, and would be lost; move it elsewhere")
            shutil.rmtree(building, ignore_errors=True)
            places: dict[str, str] = {}  # of each class; two never share one
            for file, name in self.table():
                plain = _folder_name(name)
                while name not in places:
                    taken = {place.casefold() for place in places.values()}  # a Mac's Cat and cat are one folder
                    places |= {name: plain} if plain.casefold() not in taken else {}
                    plain += "_"
                place = building / places[name]
                place.mkdir(parents=True, exist_ok=True)
                target, link = Path(file), place / Path(file).name
                if link.is_symlink():  # two folders of the data hold files of one name
                    link = place / f"{hashlib.sha256(file.encode()).hexdigest()[:8]}-{target.name}"
                link.symlink_to(target)
            building.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            building.rename(folder)
        return folder

    def export_classifier(self, folder: Path) -> Path:
        """Write the classifier as `selfsight train classification` does, for `predict` and `export`.

        Raises SelfsightError as long as there are not two labelled classes.
        """
        answers = self.learn()
        if answers.probe is None:
            raise SelfsightError("a classifier needs labels of two classes or more")
        names = {found.id: found.name for found in self.store.classes()}
        model = Classifier(self.backbone, LinearHead(self.backbone.dim, len(answers.classes), answers.probe))
        with self._exporting:  # pressed twice, weights and classes are of one answer
            run = RunFolder(folder)
            if run.config_file.exists() and not run.config().get("gallery"):
                raise SelfsightError(f"{folder}: holds a model that this page did not make; move it elsewhere")
            folder.mkdir(parents=True, exist_ok=True)
            run.method_file.unlink(missing_ok=True)  # were it stopped between the two, the old weights had new classes
            run.write_config(
                {
                    "gallery": True,
                    "task": "classification",
                    "run": str(self.folder.path),
                    "method": self.folder.config()["method"],
                    "data": self.source,
                    "classes": [names[identity] for identity in answers.classes],
                    "image_size": self.backbone.spec.image_size,
                    "stretch": self.images.stretch,
                    "backbone": spec_to_json(self.backbone.spec),
                    "model": {"head": "linear", "separator": ClassificationConfig.separator},
                    "labels": int((self.lessons()[0] >= 0).sum()),
                    "made": time.strftime("%Y-%m-%dT%H:%M:%S"),
                }
            )
            run.save_method(model)
        return folder

    def facts(self, number: int) -> dict[str, Any]:
        """Return what the page shows of an image."""
        entry, answers = self.entries[number], self.answers
        return {
            "id": number,
            "name": entry.name,
            "folder": entry.label,
            "taken": entry.taken.isoformat(sep=" ", timespec="minutes") if entry.taken else None,
            "width": entry.width,
            "height": entry.height,
            "prediction": int(answers.best[number]),
            "confidence": round(float(answers.confidence[number]), 4),
            "cluster": None if self.cluster is None else int(self.cluster[number]),
        }

    def _lay_out(self) -> None:
        """Compute the map, or read that of the same images from the index's folder."""
        digest = hashlib.sha256(self.vectors.tobytes())
        digest.update("\0".join(entry.name for entry in self.entries).encode())
        file = Path(self.index.path) / f"{self.map_kind}-{digest.hexdigest()[:16]}.npz"
        with suppress(OSError, ValueError, KeyError, BadZipFile):  # not there, or damaged: drawn anew
            with np.load(file) as found:
                self.cluster, self.places = found["cluster"], found["places"]
            return
        self.cluster = clusters(self.vectors)
        places = layout(self.vectors, kind=self.map_kind)
        cluster = self.cluster
        replace_file(file, lambda path: np.savez(path, cluster=cluster, places=places))
        self.places = places


def embed_one(backbone: Backbone, images: ImageSet) -> NDArray[np.float32]:
    """Return the features (D,) of the one image of a set."""
    features: NDArray[np.float32] = extract(backbone, images, np.arange(1), device=torch.device("cpu"))[0]
    return features


def _folder_name(name: str) -> str:
    """Return a class's name as that of a folder: no separators, no dots in front."""
    return name.replace("/", "_").replace("\\", "_").replace("\0", "").lstrip(".") or "_"
