"""The Python API: pretrain, load, and what a run can do."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from selfsight import methods, pretraining
from selfsight.backbones import Backbone
from selfsight.data import ImageSet, Skipped, open_images
from selfsight.data.decode import Stretch
from selfsight.data.listing import index_labels
from selfsight.data.sources import learn_stretch, list_images
from selfsight.embed import Embedding
from selfsight.embed import embed as embed_images
from selfsight.errors import SelfsightError
from selfsight.evaluate.curve import EvaluateConfig
from selfsight.evaluate.curve import evaluate as evaluate_backbone
from selfsight.evaluate.results import Row
from selfsight.export import Format
from selfsight.export import export as export_backbone
from selfsight.locks import locked
from selfsight.methods import Method
from selfsight.pictures import MOST_IMAGES, Picture, examples, read_pictures, save_pictures
from selfsight.progress import say
from selfsight.report import draw_looks, write_copies, write_report, write_trained
from selfsight.run import RunFolder
from selfsight.tasks.classification import ClassificationConfig
from selfsight.tasks.curve import TASKS, Settings, TrainConfig, Trained, default_learning
from selfsight.tasks.curve import train as train_task
from selfsight.tasks.learning import LearnConfig
from selfsight.training import Pretrain
from selfsight.watch import draw

if TYPE_CHECKING:  # LanceDB takes a second to load, and no training needs it
    from selfsight.search import DuplicateConfig, Entry, Group, Hit, Index, Strategy, Where


def default_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Run:
    """A pretrained backbone and its folder."""

    folder: RunFolder

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    @property
    def method(self) -> str:
        """The method that it was pretrained with."""
        return str(self.folder.config()["method"])

    def backbone(self) -> Backbone:
        """Return the trained backbone, a torch module: (B, C, S, S) in [0, 1] → (B, dim)."""
        return self.folder.load_backbone()

    def images(
        self,
        data: Any = None,
        cache: bool | None = None,
        cache_dir: Path | None = None,
        stretch: Stretch | None = None,
        verify: bool = False,
    ) -> ImageSet:
        """Open a data set as this run's backbone needs it; by default the one it was trained on. See open_images.

        By default they are kept where the run's own were, or not at all if it was trained without a cache.
        """
        config = self.folder.config()
        spec = config["backbone"]
        if data is None and "converted" in config:
            raise SelfsightError(f"{self.path}: the images of a converted run are not known; name some")
        if data is None and not Path(config["data"]).exists():
            raise SelfsightError(f"{self.path}: was trained on {config['data']}, which isn't here; name the images")
        return open_images(
            config["data"] if data is None else data,
            image_size=spec["image_size"],
            channels=spec["channels"],
            stretch=stretch,
            verify=verify,
            **self._cache(cache, cache_dir),
        )

    def _cache(self, cache: bool | None, cache_dir: Path | None) -> dict[str, Any]:
        """Return whether and where decoded images are kept: as asked, or as in the run's training."""
        begun = self.folder.config().get("pretrain", {})
        place = begun.get("cache_dir")
        if cache is None:
            cache = cache_dir is not None or begun.get("cache", True)
        if cache_dir is None and place and Path(place).is_dir():  # on another machine it may not be there
            cache_dir = Path(place)
        return {"cache": cache, "cache_dir": cache_dir}

    def embed(self, data: Any) -> Embedding:
        """Return one feature vector an image.

        Of files those that were embedded before, and have not changed since, come from the run's index.
        """
        listing = list_images(data) if isinstance(data, str | Path) else None
        if listing is None or listing.files is None:
            return embed_images(self.backbone(), self.images(data, verify=True), default_device())
        index = self.index(data)
        known = {entry.name: entry for entry in index.entries()}
        names = [name for name in listing.names if name in known]
        files, labels = [str(known[name].file) for name in names], [known[name].label for name in names]
        return Embedding(names, files, labels, index.vectors(names))

    def index(self, data: str | Path, *, cache: bool | None = None, cache_dir: Path | None = None) -> "Index":
        """Return the index of a data set, after embedding what is new or changed in it since the last time.

        It lies in the run's folder: <run>/index/<name of the data>-<hash of its place>.
        """
        from selfsight.search import Index, update

        weights = hashlib.sha256(self.folder.weights_file.read_bytes()).hexdigest()
        place = self.path / "index" / pretraining.place_of(data)
        with locked(place.with_name(f"{place.name}.lock"), f"another process is embedding {data}"):
            index = Index(place, backbone=weights)
            done = update(index, self.backbone(), data, default_device(), **self._cache(cache, cache_dir))
        if not len(index):
            raise SelfsightError(f"{data}: no image could be read")
        say(
            f"{index.path}: {len(index):,} images; {done.added:,} new, {done.changed:,} changed, {done.removed:,} gone"
            + (f"; {len(done.skipped):,} cannot be read: {_words(done.skipped)}" if done.skipped else "")
        )
        return index

    def search(
        self, data: str | Path, queries: Sequence[str | Path], k: int = 10, where: "Where | None" = None
    ) -> "list[list[Hit]]":
        """Return for each query, an image file, the `k` most similar images of the data set.

        Raises SelfsightError for a query that cannot be read.
        """
        images = self.images(list(queries), cache=False)
        if images.skipped:
            raise SelfsightError(f"--query {images.skipped[0].name}: {images.skipped[0].reason}")
        index = self.index(data)
        if images.stretch is not None:  # more than 8 bits: what is black and white, only the data set can tell
            images = self.images(list(queries), cache=False, stretch=index.stretch or learn_stretch(data))
        features = embed_images(self.backbone(), images, default_device()).features
        if images.skipped:  # damaged behind its header
            raise SelfsightError(f"--query {images.skipped[0].name}: {images.skipped[0].reason}")
        return index.search(features, k, where)

    def duplicates(
        self, data: str | Path, out: str | Path | None = None, config: "DuplicateConfig | None" = None
    ) -> "list[Group]":
        """Return groups of images that are one, and write them to the folder `out`: a table, a page, what to keep.

        Nothing is deleted. By default `out` is duplicates-<data> in the run's folder.
        """
        from selfsight.search import DuplicateConfig, duplicates, write_groups

        index = self.index(data)
        groups = duplicates(index, config or DuplicateConfig())
        folder = Path(out) if out else self.duplicates_folder(data)
        entries = index.entries()
        write_groups(folder, groups, entries)
        write_copies(folder / "report.html", str(data), groups, len(entries))
        return groups

    def duplicates_folder(self, data: str | Path) -> Path:
        """Return where `duplicates` writes by default."""
        return self.path / f"duplicates-{pretraining.name_of(data)}"

    def select(
        self,
        data: str | Path,
        n: int = 50,
        strategy: "Strategy" = "typical",
        seed: int = 0,
        *,
        ignore_labels: bool = False,
    ) -> "list[Entry]":
        """Return the `n` images of a data set that are most worth a label, beside those that have one.

        With `ignore_labels` of all images, for example where the subfolders are albums, not classes.
        """
        from selfsight.search import select

        index = self.index(data)
        entries = index.entries()
        labels, _ = index_labels([entry.label for entry in entries])
        known = np.full(len(entries), -1) if labels is None or ignore_labels else labels
        rows = select(index.vectors([entry.name for entry in entries]), known, n, strategy, seed)
        return [entries[row] for row in rows]

    def evaluate(self, data: Any = None, config: EvaluateConfig | None = None) -> list[Row]:
        """Measure accuracy with few labels, beside raw pixels, a random network and training from scratch.

        The rows are also appended to the run's results.jsonl.
        """
        if methods.saw_labels(self.folder.config()):
            self._require_unseen(self.images(data))  # opened as in training: else the damaged are left out
        images = self.images(data, verify=True)
        return evaluate_backbone(
            self.backbone(),
            images,
            config or EvaluateConfig(),
            method=self.method,
            run=str(self.path),
            data=images.source,
            out=self.path,
            device=default_device(),
        )

    def _require_unseen(self, images: ImageSet) -> None:
        """Raise SelfsightError where the run's training has seen the labels of images that would be held out."""
        for seen in methods.labels_seen(self.folder.config()):
            if images.split is not None and seen.get("parts_digest", images.parts_digest()) == images.parts_digest():
                continue
            if images.source == seen["data"] or images.digest() == seen.get("data_digest"):
                remedy = (
                    "train it on data with a train and a test part"
                    if images.split is None
                    else "put its train and test part back as they were in its training"
                )
                raise SelfsightError(
                    f"{self.path}: {self.method} has seen all labels that it trained on, or began with weights that "
                    f"have; measure it on other images than {images.source}, or {remedy}"
                )

    def trained_method(self) -> Method:
        """Return the whole trained method, with its heads and teachers, on the CPU in evaluation mode.

        Raises SelfsightError for a run without method.safetensors.
        """
        cls = methods.get(self.folder.config()["method"])
        method = cls(self.folder.random_backbone(), self.folder.settings(cls.Config))
        self.folder.load_method(method)
        return method.eval()

    def show(
        self, data: Any = None, out: str | Path | None = None, *, images: int = MOST_IMAGES, seed: int = 0
    ) -> list[Picture]:
        """Draw what the pretext task asked and the method answered, and what the backbone looks at; return the files.

        Of a converted run, whose pretext task is not known, the last only.

        Of up to `images` images, 1 to 10, spread over the test part of the data, or over all where it has none. `seed`
        fixes the random views. The PNGs go to the folder `out`, by default pictures-<data> in the run's.
        """
        if not 1 <= images <= MOST_IMAGES:
            raise SelfsightError(f"--images {images}: must be 1 to {MOST_IMAGES}")
        found = self.images(data)
        rows = examples(found, images)
        name = pretraining.name_of(found.source if data is None else data)
        folder = Path(out) if out else self.path / f"pictures-{name}"
        asked = {} if "converted" in self.folder.config() else draw(self.trained_method(), found, rows, seed)
        save_pictures(folder, asked | draw_looks(self.backbone(), found, rows))
        return read_pictures(folder)

    def train(
        self,
        data: Any,
        settings: Settings | None = None,
        config: TrainConfig | None = None,
        learning: LearnConfig | None = None,
    ) -> Trained:
        """Train a classifier, a detector or a segmenter on labels, by the kind of `settings`.

        With `config.labels` on each fraction of them, beside training from scratch: how many labels does pretraining
        save? `learning` says how, by default as suits the task (selfsight.tasks.curve.default_learning). The model,
        results.jsonl, curve.png and report.html go to `config.out`, by default runs/<data>-<task>.
        """
        settings = settings or ClassificationConfig()
        if methods.saw_labels(self.folder.config()) and isinstance(settings, ClassificationConfig):
            other = config.test if config else None  # all of it is tested, whatever its parts
            self._require_unseen(self.images(data) if other is None else replace(self.images(other), split=None))
        task = next(name for name, kind in TASKS.items() if isinstance(settings, kind))
        config, learning = config or TrainConfig(), learning or default_learning(task)
        out, method = config.out or Path("runs") / f"{pretraining.name_of(data)}-{task}", self.method
        trained = train_task(
            self.backbone(), data, config, settings, learning, method=method, run=str(self.path), out=out
        )
        if trained is None:  # a helper process has nothing left to do
            raise SystemExit(0)
        write_trained(trained)
        return trained

    def report(self, data: Any = None) -> Path:
        """Write report.html, one self-contained page, and return its path."""
        return write_report(self.folder, self.images(data), default_device())

    def export(self, target: Format, out: Path | None = None) -> Path:
        """Write the backbone as 'onnx', 'timm' or 'torchscript', check it against torch, and return the path."""
        return export_backbone(self.folder, target, out)


def _words(skipped: Sequence[Skipped]) -> str:
    """Name the first of the files that cannot be read."""
    return f"{skipped[0].name} ({skipped[0].reason})" + (", …" if len(skipped) > 1 else "")


def load(path: str | Path) -> Run:
    """Open a finished run.

    Raises SelfsightError where there is none, or where it has not finished.
    """
    run = Run(RunFolder(Path(path)))
    config = run.folder.config()
    if "task" in config:
        raise SelfsightError(
            f"{path}: is a model that `selfsight train` made, which `predict` and `export` take; name the run it was "
            f"made from: {config.get('run')}"
        )
    if "backbone" not in config or not run.folder.weights_file.exists():
        raise SelfsightError(f"{path}: not finished; continue it with `selfsight pretrain … --resume --out {path}`")
    return run


def pretrain(
    data: Any,
    method: str | type[Method] = "simclr",
    *,
    out: str | Path | None = None,
    minutes: float | None = None,
    epochs: float | None = None,
    config: Pretrain | None = None,
    settings: Method.Config | None = None,
) -> Run:
    """Pretrain a backbone on unlabeled images.

    `data` is a path (see the docs for the formats), a NumPy array, or a torchvision or Hugging Face data set.
    `method` is a name that `selfsight methods` lists, 'module:Class' of one of your own, or its class. `minutes` or
    `epochs` is the budget; everything else about the training is in `config`, the method's own
    hyperparameters in `settings`, for example `methods.get("simclr").Config(temperature=0.1)`.
    """
    config = config or Pretrain()
    config = replace(
        config,
        out=config.out if out is None else Path(out),
        minutes=config.minutes if minutes is None else minutes,
        epochs=config.epochs if epochs is None else epochs,
    )
    folder = pretraining.pretrain(data, methods.name_of(method), config, settings)
    if folder is None:  # a helper process of a distributed run has nothing left to do
        raise SystemExit(0)
    return Run(folder)


def rows_as_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as they stand in results.jsonl."""
    return [asdict(row) for row in rows]
