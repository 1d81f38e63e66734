r"""List a folder's images as a CSV that keeps whole groups of them for the test.

    python benchmarks/hold_out.py FOLDER OUT.csv --group '_(.+)\.'

Images of one thing (an emoji in two drawing styles, crops of one photo) would else lie on both sides of a split, and
what is measured on the test side would partly be memory. The group is what the parentheses find in the file's name.
"""

import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import tyro

from selfsight.data.folder import list_folder
from selfsight.errors import SelfsightError


@dataclass(frozen=True)
class Arguments:
    """What to list."""

    folder: tyro.conf.Positional[Path]
    """Images, in class subfolders if they have labels."""
    out: tyro.conf.Positional[Path]
    """The CSV to write: path, split, and label where there are labels."""
    group: str = r"(.+)\."
    """Regular expression with one pair of parentheses, searched in each file's name."""
    share: float = 0.2
    """About this share of the groups is kept for the test, 0 to 1."""


def kept(group: str, share: float) -> bool:
    """Return whether a group is of the test: the same on every machine, whatever other groups there are."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") < share * 2**32


def main(arguments: Arguments) -> None:
    """Write the CSV and say how many images lie on each side."""
    listing = list_folder(arguments.folder)
    rows = []
    for number, file in enumerate(listing.files or ()):
        found = re.search(arguments.group, Path(file).name)
        if not found:
            raise SelfsightError(f"--group {arguments.group}: not found in {file}")
        row = {"path": file, "split": "test" if kept(found[1], arguments.share) else "train"}
        rows.append(row if listing.labels is None else row | {"label": listing.classes[listing.labels[number]]})
    with arguments.out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    test = sum(row["split"] == "test" for row in rows)
    print(f"{arguments.out}: {len(rows) - test:,} images to train, {test:,} to test")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
