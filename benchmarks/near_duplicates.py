"""Near-duplicates: how many planted copies of photos are found, and how many pairs that are none.

    python benchmarks/near_duplicates.py RUN PHOTOS --copies 200

Copies of five kinds of as many photos are added to all of them; each kind is measured by itself. Precision counts the
groups' pairs: right are pairs of a photo and its copy. Photos that were alike before anything was planted, crops of one
picture, say, are grouped first, and pairs within such a group are left out of the count: nobody knows what they are.
"""

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

import selfsight
from selfsight.search import DuplicateConfig, Entry
from selfsight.search.duplicates import find_pairs, group


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    w, h = image.size
    left, top = round(w * (1 - share) / 2), round(h * (1 - share) / 2)
    return image.crop((left, top, w - left, h - top))


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resized to 40 %": lambda image: image.resize((image.width * 2 // 5, image.height * 2 // 5)),
    "JPEG of quality 40": recompressed,
    "cropped to 95 %": lambda image: cropped(image, 0.95),
    "cropped to 90 %": lambda image: cropped(image, 0.9),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    photos: tyro.conf.Positional[Path]
    """Folder of JPEGs."""
    copies: int = 200
    """Photos that get a copy of each kind."""
    config: tyro.conf.OmitArgPrefixes[DuplicateConfig] = field(default_factory=DuplicateConfig)
    sweep: bool = False
    """Also try other thresholds."""


def main(asked: Arguments) -> None:
    run = selfsight.load(asked.run)
    photos = sorted(asked.photos.rglob("*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(photos))[: asked.copies]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "all"
        for file in photos:
            (place / "0").mkdir(parents=True, exist_ok=True)
            (place / "0" / file.name).symlink_to(file.absolute())
        for number, change in enumerate(KINDS.values(), 1):
            (place / str(number)).mkdir()
            for i in chosen:
                with Image.open(photos[i]) as image:
                    copy = change(image.convert("RGB"))
                copy.save(place / str(number) / photos[i].name, quality=40 if number == 2 else 92)
        index = run.index(place)
        entries = index.entries()
        vectors = index.vectors([entry.name for entry in entries])
        tried = [asked.config]
        if asked.sweep:
            tried = [DuplicateConfig(s, d) for s in (0.8, 0.9, 0.95, 0.98) for d in (6, 10, 14, 18, 22)]
        table = Table("similarity", "distance", "kind", "recall", "precision")
        for config in tried:
            for number, name in enumerate(KINDS, 1):
                recall, precision = score(entries, vectors, number, config)
                table.add_row(str(config.similarity), str(config.distance), name, f"{recall:.3f}", f"{precision:.3f}")
        Console().print(table)


def score(entries: list[Entry], vectors: np.ndarray, number: int, config: DuplicateConfig) -> tuple[float, float]:
    """Return recall and precision of the copies of one kind, among the photos."""
    rows = [i for i, entry in enumerate(entries) if entry.name[0] in ("0", str(number))]
    some = [entries[i] for i in rows]
    before = [i for i, entry in enumerate(some) if entry.name[0] == "0"]
    own = [some[i] for i in before]
    alike = {entry.name[2:]: entry.name[2:] for entry in own}
    for found in group(own, list(find_pairs(own, vectors[[rows[i] for i in before]], config))):
        for entry in found.entries:
            alike[entry.name[2:]] = found.entries[0].name
    pairs = [
        (some[pair.first].name, some[pair.second].name)
        for pair in find_pairs(some, vectors[rows], config)
        if pair.kind != "burst"
    ]
    planted = {entry.name[2:] for entry in some if entry.name[0] == str(number)}
    found_copies, wrong = set(), set()
    for first, second in pairs:
        if first[2:] == second[2:] and first[0] != second[0]:
            found_copies.add(first[2:])
        elif alike[first[2:]] != alike[second[2:]]:
            wrong.add(frozenset((first, second)))
    return len(found_copies) / len(planted), len(found_copies) / max(1, len(found_copies) + len(wrong))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
