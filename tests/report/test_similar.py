import numpy as np
import pytest

from selfsight.data import ImageSet
from selfsight.report.similar import apart, class_palette, draw_map, nearest, project, share_alike, spread_out


def clusters(n: int) -> tuple[ImageSet, np.ndarray]:
    """Return n images in three classes and features that tell these apart."""
    random = np.random.default_rng(0)
    labels = np.arange(n) % 3
    pixels = np.broadcast_to((labels * 100).astype(np.uint8)[:, None, None, None], (n, 1, 16, 16)).copy()
    features = np.eye(8, dtype=np.float32)[labels] + 0.01 * random.standard_normal((n, 8)).astype(np.float32)
    names = [str(i) for i in range(n)]
    return ImageSet("m", pixels, np.ones(n, np.float32), names, labels=labels, classes=["a", "b", "c"]), features


def test_neighbours_come_by_similarity_and_never_the_image_itself() -> None:
    images, features = clusters(30)
    rows = np.random.default_rng(1).permutation(30)
    found = nearest(images, rows, features[rows])
    assert len(found) == 10
    for row in found:
        assert len({tile.name for tile in row}) == 7
        similarity = [tile.similarity for tile in row]
        assert similarity == sorted(similarity, reverse=True)
        assert {tile.label for tile in row} == {row[0].label}
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    query, best = int(found[0][0].name), found[0][1]
    assert best.similarity == pytest.approx(np.sort(unit[query] @ unit.T)[-2], abs=1e-5)
    assert share_alike(found) == 1


def test_images_without_labels_or_neighbours_enough_are_shown_too() -> None:
    images, features = clusters(3)
    unlabeled = ImageSet("m", images.images, images.aspect, images.names)
    found = nearest(unlabeled, np.arange(3), features)
    assert [len(row) for row in found] == [3, 3, 3]
    assert share_alike(found) is None
    assert draw_map(unlabeled, np.arange(3), features) is None


@pytest.mark.parametrize("n", [5, 60])
def test_the_map_lays_alike_images_together(n: int) -> None:
    images, features = clusters(n)
    found = draw_map(images, np.arange(n), features)
    assert found is not None
    assert len(found.points) == n
    assert [name for name, _ in found.legend] == ["a", "b", "c"]
    assert len({point.colour for point in found.points}) == 3
    places = np.array([(p.x, p.y) for p in found.points])
    if n > 10:
        distance = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(n)
        assert (distance.argmin(1) % 3 == np.arange(n) % 3).mean() > 0.9


def test_equal_features_still_have_places() -> None:
    places = project(np.ones((20, 4), np.float32))
    assert np.isfinite(places).all()
    assert places.min() >= 0
    assert places.max() <= 1


def test_thumbnails_do_not_overlap() -> None:
    places = np.random.default_rng(0).random((500, 2)) * 100
    chosen = places[apart(places, 10, 40)]
    distance = np.abs(chosen[:, None] - chosen[None]).max(2) + 100 * np.eye(len(chosen))
    assert distance.min() >= 10
    assert 20 < len(chosen) <= 40


def test_queries_are_of_different_classes_first() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    assert spread_out(labels, 4).tolist() == [0, 3, 5, 1]


@pytest.mark.parametrize("classes", [2, 15, 54])
def test_each_class_has_its_colour(classes: int) -> None:
    palette = class_palette(classes)
    assert len(set(palette)) == classes
