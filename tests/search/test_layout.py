"""Maps keep what is alike together, whichever way they are drawn."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from selfsight.search.layout import MapKind, layout
from tests.gallery.galleries import small_gallery


def groups() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors (60, 16) around three directions, and of which each is."""
    random, kind = np.random.default_rng(0), np.arange(60) % 3
    return (np.eye(16)[kind] + 0.05 * random.normal(size=(60, 16))).astype(np.float32), kind


@pytest.mark.parametrize("kind", ["umap", "tsne"])
def test_neighbours_on_the_map_are_alike(kind: MapKind, tmp_path: Path, photo: NDArray[np.uint8]) -> None:
    vectors, group = groups()
    places = layout(vectors, kind=kind)
    assert places.shape == (60, 2)
    assert places.min() == 0
    assert places.max() == pytest.approx(1)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(1)] == group).mean() == 1
    assert np.array_equal(places, layout(vectors, kind=kind))
    if kind == "umap":  # in the gallery's own thread; here, as it has been compiled, which takes long
        with small_gallery(tmp_path, photo, 24) as gallery:
            gallery._mapper.join()
            assert gallery.places is not None
            assert gallery.places.shape == (24, 2)


def test_few_images_have_places_too() -> None:
    vectors = groups()[0]
    for count in (0, 1, 2, 5):
        assert layout(vectors[:count], kind="tsne").shape == (count, 2)
