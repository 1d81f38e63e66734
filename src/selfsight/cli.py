"""The command line: verbs whose flags and help texts are the config dataclasses."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from tyro.conf import Fixed, OmitArgPrefixes, Positional, Suppress

from selfsight.errors import SelfsightError
from selfsight.progress import say

USAGE = """selfsight: self-supervised learning on your own images

  selfsight pretrain METHOD DATA   train a backbone on unlabeled images
  selfsight methods                the pretext tasks that there are
  selfsight embed RUN DATA         one feature vector an image
  selfsight evaluate RUN DATA      how good it is with few labels, beside honest baselines
  selfsight compare DATA           train several pretext tasks alike, side by side on one page
  selfsight train TASK RUN DATA    a classifier, detector or segmenter from few labels
  selfsight predict MODEL DATA     use it: classes, boxes or masks, and pictures of them
  selfsight search RUN DATA        the images most similar to one
  selfsight duplicates RUN DATA    copies and bursts: groups, a page, a list of what to keep
  selfsight select RUN DATA        which images to label next
  selfsight gallery RUN DATA       a web page: see, search, label twenty images, watch a classifier appear
  selfsight show RUN DATA          pictures: the task, the answers, what the network looks at
  selfsight report RUN             write the run's page anew
  selfsight export RUN|MODEL       ONNX; of a RUN also TorchScript or timm weights
  selfsight convert CHECKPOINT     a run out of solo-learn's or lightly's checkpoint
  selfsight demo                   the whole path on handwritten digits: 4,000 to learn from

DATA is a folder of images (class subfolders are labels for evaluations, curves and supcon alone), MNIST-like IDX files,
an .npz, or a CSV or Parquet file with columns path, label and split. Every verb explains itself with --help;
all but gallery, which serves its page until Ctrl-C, print their result as JSON with --json."""


@dataclass(frozen=True)
class Shared:
    """What every verb takes that ends with a result."""

    json: bool = False
    """Print the result as JSON on stdout."""


def show(result: dict[str, Any], shared: Shared, words: str) -> None:
    """Print a result on stdout: as JSON if asked, else in words."""
    print(json.dumps(result, default=str) if shared.json else words)


def pretrain_verb(argv: list[str]) -> None:
    """Train a backbone on unlabeled images by a pretext task."""
    from selfsight import api, methods
    from selfsight.training import Pretrain

    if not argv or argv[0].startswith("-"):
        print(f"selfsight pretrain METHOD DATA [flags]\n\nMETHOD is one of: {', '.join(methods.names())}")
        print("or module:Class, one of your own (docs/add-a-method.md).")
        print("`selfsight pretrain METHOD --help` lists its flags, `selfsight methods` says what each does.")
        raise SystemExit(0 if argv and argv[0] in ("-h", "--help") else 2)
    cls = methods.get(argv[0])
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [
            ("data", Annotated[Positional[str], tyro.conf.arg(help="Folder, IDX pair, .npz, CSV or Parquet file.")]),
            ("training", OmitArgPrefixes[Pretrain], field(default_factory=Pretrain)),
            ("settings", Annotated[cls.Config, tyro.conf.OmitArgPrefixes], field(default_factory=cls.Config)),
            ("shared", OmitArgPrefixes[Shared], field(default_factory=Shared)),
        ],
    )
    asked: Any = tyro.cli(arguments, args=argv[1:], prog=f"selfsight pretrain {argv[0]}", description=cls.__doc__)
    run = api.pretrain(asked.data, argv[0], config=asked.training, settings=asked.settings)
    report = run.report(asked.data)
    show(
        {"run": str(run.path), "report": str(report)},
        asked.shared,
        f"{run.path}: done\n  look:     {report}\n  see:      selfsight show {run.path}\n"
        f"  use:      selfsight embed {run.path} {asked.data} --out embeddings.npz\n"
        f"  measure:  selfsight evaluate {run.path} LABELED   (images in a subfolder a class, or a table)",
    )


def methods_verb(argv: list[str]) -> None:
    """List the pretext tasks."""
    from selfsight import methods

    shared = tyro.cli(Shared, args=argv, prog="selfsight methods", description="List the pretext tasks.")
    rows = [
        {"name": name, "what": (cls.__doc__ or "").strip().splitlines()[0], "paper": cls.paper}
        for name in methods.names()
        for cls in [methods.get(name)]
    ]
    show({"methods": rows}, shared, "\n".join(f"{r['name']:14} {r['what']}\n{'':14} {r['paper']}" for r in rows))


def embed_verb(argv: list[str]) -> None:
    """Write one feature vector an image."""
    from selfsight import api
    from selfsight.embed import require_writable

    @dataclass(frozen=True)
    class Arguments:
        run: Positional[Path]
        """Run folder."""
        data: Positional[str]
        """The images."""
        out: Path = Path("embeddings.npz")
        """.npz, .csv or .parquet."""
        shared: OmitArgPrefixes[Shared] = field(default_factory=Shared)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight embed", description=embed_verb.__doc__)
    require_writable(asked.out)  # now, not after all images are embedded
    embedding = api.load(asked.run).embed(asked.data)
    path = embedding.save(asked.out)
    count, dim = embedding.features.shape
    show({"out": str(path), "images": count, "dim": dim}, asked.shared, f"{path}: {count:,} images × {dim} features")


def evaluate_verb(argv: list[str]) -> None:
    """Measure accuracy with few labels, beside raw pixels, a random network and training from scratch."""
    from selfsight import api
    from selfsight.evaluate.curve import EvaluateConfig
    from selfsight.evaluate.results import print_table
    from selfsight.evaluate.savings import savings

    @dataclass(frozen=True)
    class Arguments:
        run: Positional[Path]
        """Run folder."""
        data: Positional[str]
        """Labeled images."""
        config: OmitArgPrefixes[EvaluateConfig] = field(default_factory=EvaluateConfig)
        shared: OmitArgPrefixes[Shared] = field(default_factory=Shared)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight evaluate", description=evaluate_verb.__doc__)
    run = api.load(asked.run)
    rows = run.evaluate(asked.data, asked.config)
    report = run.report(asked.data)
    saved = [s.sentence() for s in savings([row for row in rows if row.protocol == "finetune"])]
    if asked.shared.json:
        found = {"run": str(run.path), "report": str(report), "savings": saved, "rows": api.rows_as_dicts(rows)}
        print(json.dumps(found))
    else:
        print_table(rows)
        print("\n".join([*saved, str(report)]))


def search_verb(argv: list[str]) -> None:
    """Find the images most similar to one, or to each of several, by the cosine of their embeddings.

    The first time all images are embedded into an index in the run's folder, later what is new or changed.
    """
    from selfsight import api
    from selfsight.search import Where

    @dataclass(frozen=True)
    class Arguments:
        run: Positional[Path]
        """Run folder."""
        data: Positional[str]
        """The images to search."""
        query: tuple[Path, ...]
        """Image to look for, or several; it need not be one of the data."""
        k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
        """How many images to find."""
        label: tuple[str, ...] = ()
        """Only images of these classes."""
        folder: str | None = None
        """Only images in this folder of the data, or below it."""
        after: date | None = None
        """Only photos taken on this day or later (YYYY-MM-DD), by their EXIF."""
        before: date | None = None
        """Only photos taken before this day."""
        shared: OmitArgPrefixes[Shared] = field(default_factory=Shared)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight search", description=search_verb.__doc__)
    if asked.k < 1:
        raise SelfsightError(f"-k {asked.k}: must be 1 or more")
    days = [None if day is None else datetime.combine(day, time()) for day in (asked.after, asked.before)]
    where = Where(asked.label, asked.folder, *days)
    found = api.load(asked.run).search(asked.data, asked.query, asked.k, where)
    rows = [
        {"query": str(query), "similarity": round(hit.similarity, 4)} | dataclasses.asdict(hit.entry)
        for query, hits in zip(asked.query, found, strict=True)
        for hit in hits
    ]
    several = len(asked.query) > 1
    lines = [
        (f"{row['query']}\t" if several else "")
        + f"{row['similarity']:.3f}  {row['file'] or row['name']}"
        + (f"  {row['label']}" if row["label"] else "")
        for row in rows
    ]
    show({"hits": rows}, asked.shared, "\n".join(lines) or "no image fits")


def duplicates_verb(argv: list[str]) -> None:
    """Find images that are there twice: the same bytes, the same picture, or a burst. Nothing is deleted."""
    from selfsight import api
    from selfsight.search import DuplicateConfig

    @dataclass(frozen=True)
    class Arguments:
        run: Positional[Path]
        """Run folder."""
        data: Positional[str]
        """The images."""
        out: Path | None = None
        """Folder of duplicates.csv, keep.txt and report.html; by default duplicates-<data> in the run's."""
        config: OmitArgPrefixes[DuplicateConfig] = field(default_factory=DuplicateConfig)
        shared: OmitArgPrefixes[Shared] = field(default_factory=Shared)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight duplicates", description=duplicates_verb.__doc__)
    run = api.load(asked.run)
    out = asked.out or run.duplicates_folder(asked.data)
    groups = run.duplicates(asked.data, out, asked.config)
    kinds = {kind: [g for g in groups if g.kind == kind] for kind in ("exact", "near", "burst")}
    show(
        {
            "out": str(out),
            "groups": [
                {"kind": g.kind, "similarity": g.similarity, "images": [e.file or e.name for e in g.entries]}
                for g in groups
            ],
        },
        asked.shared,
        "\n".join(f"{kind:6} {len(g):,} groups, {sum(len(x.entries) for x in g):,} images" for kind, g in kinds.items())
        + f"\nlook: {out / 'report.html'}\nkeep: {out / 'keep.txt'}",
    )


def select_verb(argv: list[str]) -> None:
    """Choose which images to label next, so that few labels say much."""
    from selfsight import api
    from selfsight.run import unfilled, write_table
    from selfsight.search import Strategy

    @dataclass(frozen=True)
    class Arguments:
        run: Positional[Path]
        """Run folder."""
        data: Positional[str]
        """The images; those with a class already (in a table with path,label) are known, the others can be chosen."""
        n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 50
        """How many."""
        strategy: Strategy = "typical"
        """typical: one from the midst of each cluster; diverse: far from each other; uncertain: those of which
        a classifier, trained on the labels so far, is least sure; both: of these, ones that differ; random."""
        seed: int = 0
        """Seed of the clusters, and of random."""
        ignore_labels: bool = False
        """Choose among all images: where the subfolders are albums, not classes."""
        out: Path | None = None
        """CSV with columns path,label to fill in; by default only printed."""
        shared: OmitArgPrefixes[Shared] = field(default_factory=Shared)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight select", description=select_verb.__doc__)
    columns = ["path", "label"]
    if asked.out is not None and not unfilled(asked.out, columns):
        raise SelfsightError(f"--out {asked.out}: holds labels, which would be lost; choose another file")
    chosen = api.load(asked.run).select(
        asked.data, asked.n, asked.strategy, asked.seed, ignore_labels=asked.ignore_labels
    )
    paths = [entry.file or entry.name for entry in chosen]
    if asked.out is not None:
        write_table(asked.out, columns, [[path, ""] for path in paths])
    show({"images": paths} | ({"out": str(asked.out)} if asked.out else {}), asked.shared, "\n".join(paths))


def gallery_verb(argv: list[str]) -> None:
    """Open a page on this machine: all images as a grid and a map, search, duplicates, and labels for a classifier."""
    from selfsight import api
    from selfsight.gallery.serve import GalleryConfig, serve

    @dataclass(frozen=True)
    class Arguments:
        run: Positional[Path]
        """Run folder."""
        data: Positional[str]
        """The images."""
        config: OmitArgPrefixes[GalleryConfig] = field(default_factory=GalleryConfig)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight gallery", description=gallery_verb.__doc__)
    serve(api.load(asked.run), asked.data, asked.config)


def show_verb(argv: list[str]) -> None:
    """Draw what the pretext task asked and the method answered, and what the backbone looks at."""
    from selfsight import api
    from selfsight.pictures import MOST_IMAGES

    @dataclass(frozen=True)
    class Arguments:
        run: Positional[Path]
        """Run folder."""
        data: Positional[str | None] = None
        """The images; by default those that it was trained on. Of data with a split the test part is shown."""
        out: Path | None = None
        """Folder for the PNGs and pictures.json, their captions; by default pictures-<data> in the run's."""
        images: int = MOST_IMAGES
        """How many to show, at most 10."""
        seed: int = 0
        """Fixes the random views."""
        shared: OmitArgPrefixes[Shared] = field(default_factory=Shared)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight show", description=show_verb.__doc__)
    pictures = api.load(asked.run).show(asked.data, asked.out, images=asked.images, seed=asked.seed)
    show(
        {"pictures": [{"file": str(p.file), "caption": p.caption} for p in pictures]},
        asked.shared,
        "\n".join(f"{p.file}\n  {p.caption}" for p in pictures),
    )


def compare_verb(argv: list[str]) -> None:
    """Train several pretext tasks alike and compare them: accuracy with few labels, health, speed, memory, pictures.

    Each method's run is a folder in --out; the same command again goes on where it was interrupted.
    """
    from selfsight.compare import CompareConfig, compare
    from selfsight.evaluate.curve import EvaluateConfig
    from selfsight.report import print_comparison
    from selfsight.training import Pretrain

    @dataclass(frozen=True)
    class Evaluation(EvaluateConfig):
        """EvaluateConfig without a flag for its seed: the one --seed fixes all."""

        seed: Suppress[Fixed[int]] = 0

    @dataclass(frozen=True)
    class Arguments:
        data: Positional[str]
        """Labeled images; no pretraining but supcon's sees the labels."""
        compare: Annotated[CompareConfig, tyro.conf.arg(name="")] = field(default_factory=CompareConfig)
        training: Annotated[Pretrain, tyro.conf.arg(name="")] = field(default_factory=Pretrain)
        evaluation: Annotated[Evaluation, tyro.conf.arg(name="")] = field(default_factory=Evaluation)
        shared: OmitArgPrefixes[Shared] = field(default_factory=Shared)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight compare", description=compare_verb.__doc__)
    evaluation = dataclasses.replace(asked.evaluation, seed=asked.training.seed)
    comparison = compare(asked.data, asked.compare, asked.training, evaluation)
    report = Path(comparison.out) / "report.html"
    if asked.shared.json:
        print(json.dumps({"report": str(report)} | comparison.as_dict()))
    else:
        print_comparison(comparison)
        print(report)


def train_verb(argv: list[str]) -> None:
    """Train a classifier, detector or segmenter on labels, pretrained and, with --labels, from scratch too."""
    from selfsight import api
    from selfsight.evaluate.results import print_table
    from selfsight.tasks.curve import TASKS, TrainConfig, default_learning
    from selfsight.tasks.learning import LearnConfig

    if not argv or argv[0] not in TASKS:
        print(f"selfsight train TASK RUN DATA [flags]\n\nTASK is one of: {', '.join(TASKS)}")
        print(
            "DATA: for classification a folder a class, a CSV with path,label, IDX or .npz; for detection COCO, YOLO or"
        )
        print("Pascal VOC boxes; for segmentation images/ and masks/, or COCO polygons. `… TASK --help` says more.")
        raise SystemExit(0 if argv and argv[0] in ("-h", "--help") else 2)
    kind = TASKS[argv[0]]
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [
            ("run", Annotated[Positional[Path], tyro.conf.arg(help="Run folder: the pretrained backbone.")]),
            ("data", Annotated[Positional[str], tyro.conf.arg(help="Labelled images.")]),
            ("config", OmitArgPrefixes[TrainConfig], field(default_factory=TrainConfig)),
            ("learning", OmitArgPrefixes[LearnConfig], field(default=default_learning(argv[0]))),
            ("settings", Annotated[kind, tyro.conf.OmitArgPrefixes], field(default_factory=kind)),
            ("shared", OmitArgPrefixes[Shared], field(default_factory=Shared)),
        ],
    )
    prog = f"selfsight train {argv[0]}"
    asked: Any = tyro.cli(arguments, args=argv[1:], prog=prog, description=train_verb.__doc__)
    trained = api.load(asked.run).train(asked.data, asked.settings, asked.config, asked.learning)
    saved, report = trained.savings(), trained.out / "report.html"
    if asked.shared.json:
        rows = api.rows_as_dicts(trained.rows)
        print(
            json.dumps(
                {"out": str(trained.out), "report": str(report), "problems": trained.problems}
                | {"savings": saved, "rows": rows}
            )
        )
    else:
        print_table(trained.main)
        print("\n".join([*saved, f"look: {report}", f"use:  selfsight predict {trained.out} IMAGES --out predictions"]))


def predict_verb(argv: list[str]) -> None:
    """Use a trained classifier, detector or segmenter on a folder, a file, or the paths on standard input."""
    from selfsight.tasks.predict import PredictConfig, predict

    @dataclass(frozen=True)
    class Arguments:
        model: Positional[Path]
        """What `selfsight train` wrote."""
        data: Positional[str]
        """Folder or file; - reads a path a line from standard input."""
        config: OmitArgPrefixes[PredictConfig] = field(default_factory=PredictConfig)
        shared: OmitArgPrefixes[Shared] = field(default_factory=Shared)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight predict", description=predict_verb.__doc__)
    written = predict(asked.model, asked.data, asked.config)
    show(written, asked.shared, "\n".join(f"{name}: {value}" for name, value in written.items()))


def report_verb(argv: list[str]) -> None:
    """Write the run's report anew."""
    from selfsight import api

    @dataclass(frozen=True)
    class Arguments:
        run: Positional[Path]
        """Run folder."""
        data: Positional[str | None] = None
        """The images to show; by default those that it was trained on."""
        shared: OmitArgPrefixes[Shared] = field(default_factory=Shared)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight report", description=report_verb.__doc__)
    path = api.load(asked.run).report(asked.data)
    show({"report": str(path)}, asked.shared, str(path))


def export_verb(argv: list[str]) -> None:
    """Write the backbone, or a model that `selfsight train` made, for other programs; checked against torch."""
    from selfsight import api
    from selfsight.export import Format
    from selfsight.run import RunFolder
    from selfsight.tasks.export import export_task

    @dataclass(frozen=True)
    class Arguments:
        run: Positional[Path]
        """Run folder, or what `selfsight train` wrote."""
        format: Format = "onnx"
        """onnx and torchscript take images in [0, 1]; timm is a state dict for timm.create_model. A trained
        classifier, detector or segmenter is written as onnx."""
        out: Path | None = None
        """File to write; by default in the run folder."""
        shared: OmitArgPrefixes[Shared] = field(default_factory=Shared)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight export", description=export_verb.__doc__)
    if "task" in RunFolder(asked.run).config():
        if asked.format != "onnx":
            raise SelfsightError(f"--format {asked.format}: a trained model is written as onnx")
        path = export_task(asked.run, asked.out)
    else:
        path = api.load(asked.run).export(asked.format, asked.out)
    show({"out": str(path), "format": asked.format}, asked.shared, str(path))


def convert_verb(argv: list[str]) -> None:
    """Make a run of a backbone that another library trained.

    Of solo-learn, lightly, lightly-train, timm, torchvision, or an EfficientNet of efficientnet_pytorch.

    Nothing in the checkpoint is executed.
    """
    from selfsight.backbones import IMAGENET_MEAN, IMAGENET_STD
    from selfsight.convert import convert

    @dataclass(frozen=True)
    class Arguments:
        checkpoint: Positional[Path]
        """A .ckpt, .pth or .safetensors file."""
        out: Path
        """Folder of the run that is made."""
        backbone: str
        """timm's name of the architecture, such as resnet18."""
        image_size: int = 224
        """Side of the images in pixels that it was trained with; 32 for CIFAR."""
        mean: tuple[float, ...] = IMAGENET_MEAN
        """Mean of each channel in [0, 1] that it was trained with, one for grey images; by default ImageNet's."""
        std: tuple[float, ...] = IMAGENET_STD
        """Standard deviation of each channel."""
        heads: int | None = None
        """Heads of a ViT's attention, where they are not as many as timm's: solo-learn's MAE and MoCo v3 have 12 in the
        tiny and the small one. The file doesn't tell."""
        mean_tokens: bool = False
        """Features are the mean of a ViT's patches, as MAE's mostly are, instead of the class token."""
        shared: OmitArgPrefixes[Shared] = field(default_factory=Shared)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight convert", description=convert_verb.__doc__)
    if len(asked.mean) != len(asked.std):
        raise SelfsightError("--mean and --std: give as many numbers of each")
    run = convert(
        asked.checkpoint,
        asked.out,
        asked.backbone,
        asked.image_size,
        asked.mean,
        asked.std,
        heads=asked.heads,
        mean_tokens=asked.mean_tokens,
    )
    count = run.config()["converted"]["tensors"]
    show({"out": str(run.path), "tensors": count}, asked.shared, f"{run.path}: {asked.backbone}, {count} tensors")


def demo_verb(argv: list[str]) -> None:
    """Run the whole path on handwritten digits, 4,000 to learn from: pretrain, embed, few labels, report; 6 minutes."""
    from selfsight.demo import demo
    from selfsight.evaluate.results import Row, print_table

    @dataclass(frozen=True)
    class Arguments:
        out: Path = Path("runs/demo")
        """Run folder; an earlier demo there is replaced."""
        minutes: float = 4.5
        """Minutes of pretraining."""
        shared: OmitArgPrefixes[Shared] = field(default_factory=Shared)

    asked = tyro.cli(Arguments, args=argv, prog="selfsight demo", description=demo_verb.__doc__)
    result = demo(asked.out, asked.minutes)
    if not asked.shared.json:
        print_table([Row(**row) for row in result["rows"]])
    show(result, asked.shared, f"report: {result['report']}")


VERBS: dict[str, Callable[[list[str]], None]] = {
    "pretrain": pretrain_verb,
    "methods": methods_verb,
    "embed": embed_verb,
    "evaluate": evaluate_verb,
    "search": search_verb,
    "duplicates": duplicates_verb,
    "select": select_verb,
    "gallery": gallery_verb,
    "show": show_verb,
    "compare": compare_verb,
    "train": train_verb,
    "predict": predict_verb,
    "report": report_verb,
    "export": export_verb,
    "convert": convert_verb,
    "demo": demo_verb,
}


def main() -> None:
    """Run a verb: exit code 0 done, 1 failed with a one-line reason, 2 wrong usage."""
    try:
        try:
            dispatch(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not reader_left():
            raise
        raise SystemExit(1) from None


def dispatch(argv: list[str]) -> None:
    """Run the verb that `argv` begins with."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        raise SystemExit(0 if argv else 2)
    if argv[0] == "--version":
        from selfsight import __version__

        print(__version__)
        return
    if argv[0] not in VERBS:
        say(f"selfsight: no verb {argv[0]!r}; there are {', '.join(VERBS)}")
        raise SystemExit(2)
    try:
        VERBS[argv[0]](argv[1:])
    except SelfsightError as error:
        Console(stderr=True).print(f"selfsight: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(1) from None
    except OSError as error:  # a full disk, a folder that must not be written, a file where a folder should be
        if error.filename is None or isinstance(error, BrokenPipeError):
            raise
        say(f"selfsight: {error.filename}: {(error.strerror or str(error)).lower()}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        say("selfsight: interrupted")
        raise SystemExit(130) from None


def reader_left() -> bool:
    """Whether nobody reads standard output any more, as in `selfsight methods | head -1`; if so, hush it."""
    try:
        os.write(sys.stdout.fileno(), b"\n")  # a flush would not tell where Python runs unbuffered
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


if __name__ == "__main__":
    main()
