"""The page of duplicates: each group's images side by side, the one to keep first."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selfsight.data.decode import BadImageError
from selfsight.pictures import data_uri, shrunk
from selfsight.report.page import write_page

if TYPE_CHECKING:  # LanceDB takes a second to load
    from selfsight.search import Entry, Group

MOST_GROUPS, MOST_SHOWN, SIDE = 200, 12, 160
"""Groups, and images a group, that the page shows; and a picture's longer side in pixels."""


def write_copies(path: Path, data: str, groups: "Sequence[Group]", images: int) -> Path:
    """Write the page and return its path: one file without links to others."""
    shown = [
        (
            found,
            [(_thumbnail(entry), entry) for entry in found.entries[:MOST_SHOWN]],
            len(found.entries) - MOST_SHOWN,
        )
        for found in groups[:MOST_GROUPS]
    ]
    copies = [found for found in groups if found.kind != "burst"]
    values = {
        "title": f"Duplicates in {Path(data).name}",
        "images": images,
        "groups": shown,
        "more": len(groups) - len(shown),
        "copies": len(copies),
        "spare": sum(len(found.spare) for found in groups),
        "spare_bytes": sum(entry.size for found in groups for entry in found.spare),
        "bursts": len(groups) - len(copies),
    }
    write_page(path, "copies.html", values)
    return path


def _thumbnail(entry: "Entry") -> str:
    """Return a small picture as a data URI; '' for an image without a file that Pillow reads."""
    if entry.file is None:
        return ""
    try:
        return data_uri(shrunk(entry.file, SIDE))
    except BadImageError:
        return ""
