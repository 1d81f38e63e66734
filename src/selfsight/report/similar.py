"""What the backbone finds alike: a map on which similar images lie near each other, and nearest neighbours."""

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from selfsight.data import ImageSet
from selfsight.embed import class_names
from selfsight.pictures import data_uri, thumbnails

WIDTH, HEIGHT, THUMBNAIL = 1000, 680, 42
"""The map's and a thumbnail's size in its own units."""
MOST_POINTS, MOST_THUMBNAILS = 1000, 150
FEWEST_POINTS = 5
"""A map of fewer images says nothing."""
QUERIES, NEIGHBOURS = 10, 6
MOST_CLASSES = 20
"""More classes than this have no legend: their colours are hard to tell apart."""


@dataclass(frozen=True)
class Tile:
    """An image with what the page says about it."""

    image: str
    """Data URI."""
    name: str
    label: str
    colour: str
    """Of its class; '' where unknown."""
    similarity: float = 1.0
    """Cosine similarity to the row's query."""


@dataclass(frozen=True)
class Point:
    """An image's place on the map."""

    x: float
    y: float
    name: str
    label: str
    colour: str


@dataclass(frozen=True)
class Map:
    """All points, some of them with a thumbnail, and the classes with their colours, if there are few enough."""

    points: list[Point]
    thumbnails: list[tuple[Point, str]]
    legend: list[tuple[str, str]]


def class_colours(images: ImageSet, rows: NDArray[np.int64]) -> list[str]:
    """Return a colour for each of these rows by its class; '' where that is unknown."""
    if images.labels is None:
        return [""] * len(rows)
    palette = class_palette(len(images.classes))
    return [palette[i] if i >= 0 else "" for i in images.labels[rows]]


def class_palette(classes: int) -> list[str]:
    """Return a colour a class, readable on black and on white; above twenty, neighbours are much alike."""
    if classes <= MOST_CLASSES:
        return [to_hex(c) for c in mpl.colormaps["tab10" if classes <= 10 else "tab20"].colors[:classes]]  # type: ignore[attr-defined]
    return [to_hex(mpl.colormaps["hsv"](i / classes)) for i in range(classes)]


def draw_map(images: ImageSet, rows: NDArray[np.int64], features: NDArray[np.float32]) -> Map | None:
    """Return the t-SNE map of up to MOST_POINTS of these rows' features (len(rows), D); None for too few.

    The rows are in random order, so that the first ones are a sample.
    """
    rows, features = rows[:MOST_POINTS], features[:MOST_POINTS]
    if len(rows) < FEWEST_POINTS:
        return None
    places = project(features) * (WIDTH - THUMBNAIL, HEIGHT - THUMBNAIL) + THUMBNAIL / 2
    labels, colours = class_names(images), class_colours(images, rows)
    points = [
        Point(round(x, 1), round(y, 1), images.names[row], labels[row], colour)
        for (x, y), row, colour in zip(places.tolist(), rows, colours, strict=True)
    ]
    chosen = apart(places, THUMBNAIL * 1.15, MOST_THUMBNAILS)
    pictures = [_small(picture) for picture in thumbnails(images, rows[chosen])]
    few = images.labels is not None and len(images.classes) <= MOST_CLASSES
    legend = list(zip(images.classes, class_palette(len(images.classes)), strict=True)) if few else []
    return Map(points, [(points[i], picture) for i, picture in zip(chosen, pictures, strict=True)], legend)


def project(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return places (N, 2) in [0, 1] at which near features (N, D) lie near: PCA to 50 dimensions, then t-SNE."""
    x = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    x = x + np.random.default_rng(0).normal(0, 1e-6, x.shape)  # features that are all equal have no axes
    x = PCA(min(50, *x.shape), random_state=0).fit_transform(x)
    perplexity = min(30.0, (len(x) - 1) / 3)
    places = TSNE(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(x.astype(np.float32))
    low, high = places.min(0), places.max(0)
    return np.asarray((places - low) / np.maximum(high - low, 1e-12), np.float64)


def apart(places: NDArray[np.float64], distance: float, most: int) -> list[int]:
    """Return up to `most` of the places (N, 2), in order, none nearer to another than `distance` in both axes."""
    chosen: list[int] = []
    for i, place in enumerate(places):
        if len(chosen) < most and not (np.abs(places[chosen] - place).max(1, initial=0) < distance).any():
            chosen.append(i)
    return chosen


def nearest(images: ImageSet, rows: NDArray[np.int64], features: NDArray[np.float32]) -> list[list[Tile]]:
    """Return for ten of the rows the image itself and, in order, the six others of most similar features.

    The queries are the first rows, of different classes as far as there are.
    """
    x = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    queries = spread_out(images.labels[rows] if images.labels is not None else np.zeros(len(rows), np.int64), QUERIES)
    similarity = x[queries] @ x.T  # (queries, N)
    itself = np.arange(len(queries))
    similarity[itself, queries] = np.inf
    near = np.argsort(-similarity, axis=1, kind="stable")[:, : NEIGHBOURS + 1]
    similarity[itself, queries] = 1
    shown, place = np.unique(near, return_inverse=True)
    pictures = [data_uri(picture) for picture in thumbnails(images, rows[shown], 96)]
    labels, colours = class_names(images), class_colours(images, rows)
    return [
        [
            Tile(pictures[p], images.names[rows[i]], labels[rows[i]], colours[i], float(similarity[query, i]))
            for i, p in zip(near[query], places, strict=True)
        ]
        for query, places in enumerate(place.reshape(near.shape))
    ]


def spread_out(labels: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the places of n rows: one of each class by turns, each class in order."""
    turn = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = labels == label
        turn[members] = np.arange(members.sum())
    return np.asarray(np.argsort(turn, kind="stable")[:n])


def share_alike(tiles: Sequence[Sequence[Tile]]) -> float | None:
    """Return the share of neighbours with their query's label; None without labels."""
    known = [tile.label == row[0].label for row in tiles for tile in row[1:] if row[0].label and tile.label]
    return sum(known) / len(known) if known else None


def _small(picture: Image.Image) -> str:
    """Return a thumbnail for the map, where there are many: a data URI of a few kilobytes."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"
