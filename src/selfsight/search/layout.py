"""Where images lie on a map, and which of them form a cluster."""

import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from selfsight.search.index import unit

MapKind = Literal["umap", "tsne"]
FEWEST = 20
"""Fewer images are laid out by their two principal axes: there are no neighbourhoods to speak of."""
NEIGHBOURS = 15
REPEATABLE = 20_000
"""Above so many images UMAP uses all cores, and no two layouts are the same."""
MOST_CLUSTERS, MOST_EXACT = 24, 5000


def layout(vectors: NDArray[np.float32], seed: int = 0, kind: MapKind = "umap") -> NDArray[np.float32]:
    """Return places (N, 2) in [0, 1] for vectors (N, D): near each other where their cosine is high.

    McInnes, Healy, Melville 2018, "UMAP: Uniform Manifold Approximation and Projection for Dimension Reduction"; van
    der Maaten, Hinton 2008, "Visualizing Data using t-SNE".
    """
    if len(vectors) < 3:
        return np.array([(0.5, 0.5), (0.75, 0.75)][: len(vectors)], np.float32).reshape(-1, 2)
    if len(vectors) < FEWEST:
        places = PCA(2, random_state=seed).fit_transform(unit(vectors))
    elif kind == "tsne":
        perplexity = min(30.0, (len(vectors) - 1) / 3)
        places = TSNE(2, perplexity=perplexity, random_state=seed).fit_transform(unit(vectors))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numba, and of what a fixed seed costs
            import umap

            fixed = seed if len(vectors) <= REPEATABLE else None
            mapper = umap.UMAP(n_neighbors=min(NEIGHBOURS, len(vectors) - 1), metric="cosine", random_state=fixed)
            places = mapper.fit_transform(vectors)
    low, high = places.min(0), places.max(0)
    scaled: NDArray[np.float32] = ((places - low) / np.maximum(high - low, 1e-9)).astype(np.float32)
    return scaled


def clusters(vectors: NDArray[np.float32], seed: int = 0) -> NDArray[np.int64]:
    """Return (N,) the number of each image's cluster, the largest 0, by k-means on vectors (N, D) of length 1.

    There are about as many clusters as the root of half the images, at most MOST_CLUSTERS.
    """
    count = int(np.clip(round((len(vectors) / 2) ** 0.5), 1, MOST_CLUSTERS))
    kind = KMeans if len(vectors) <= MOST_EXACT else MiniBatchKMeans
    found = kind(count, n_init=1, random_state=seed).fit_predict(unit(vectors))
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    return np.asarray(rank[found], np.int64)
