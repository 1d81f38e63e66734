"""DeepCluster's k-means equals a plain one, its memory is filled by rows, and clusters are found after each pass."""

import pytest
import torch
import torch.nn.functional as F

from selfsight.methods.deepcluster_v2 import DeepClusterV2, closest, means
from tests.methods.test_methods import a_batch, a_method


def test_means_equal_a_plain_loop_and_an_empty_cluster_stays() -> None:
    torch.manual_seed(0)
    vectors, before = F.normalize(torch.randn(30, 4), dim=1), F.normalize(torch.randn(5, 4), dim=1)
    cluster = torch.randint(0, 4, (30,))
    found = means(vectors, cluster, before)
    for k in range(4):
        mean = vectors[cluster == k].sum(0)
        assert torch.allclose(found[k], mean / mean.norm(), atol=1e-6)
    assert torch.allclose(found[4], before[4], atol=1e-6)


def test_the_closest_centres_are_found_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vectors, centres = F.normalize(torch.randn(30, 4), dim=1), F.normalize(torch.randn(5, 4), dim=1)
    monkeypatch.setattr("selfsight.methods.deepcluster_v2.PIECE", 7)
    assert torch.equal(closest(vectors, centres), torch.cdist(vectors, centres).argmin(1))


def test_after_a_pass_each_image_has_the_cluster_nearest_to_its_embedding() -> None:
    method = a_method("deepcluster_v2", small=True)
    assert isinstance(method, DeepClusterV2)
    assert len(method.embeddings) == 16
    assert method.centres.shape[1] == 4, "never more clusters than a quarter of the images"
    batch = a_batch()
    method(batch, 0.0)
    assert (method.clusters == -1).all()
    assert torch.allclose(method.embeddings.norm(dim=1), torch.ones(16), atol=1e-5)
    method.after_step(0.0)
    assert int(method.seen_since) == 0
    for centres, clusters in zip(method.centres, method.clusters, strict=True):
        assert torch.equal(clusters, (method.embeddings @ centres.T).argmax(1))
    assert not torch.equal(method.centres[0], method.centres[1]), "independent clusterings"


def test_half_a_pass_clusters_what_it_has_seen_and_the_rest_waits() -> None:
    method = a_method("deepcluster_v2", small=True)
    assert isinstance(method, DeepClusterV2)
    half = a_batch(8)
    method(half, 0.0)
    method.after_step(0.0)
    assert (method.clusters[:, :8] >= 0).all()
    assert (method.clusters[:, 8:] == -1).all()
