"""Queues and neighbours: in what order rows are overwritten, and what stands in for a view."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from selfsight.nn import Queue, cosines, nearest
from tests.methods.test_methods import a_method


def test_a_queue_overwrites_its_oldest_rows_in_order() -> None:
    queue = Queue(5, 3)
    new = F.normalize(torch.randn(7, 3), dim=1)
    queue.push(new[:3])
    assert torch.equal(queue.rows[:3], new[:3])
    queue.push(new[3:6])
    assert torch.equal(queue.rows, new[[5, 1, 2, 3, 4]])
    read = queue.rows
    queue.push(new[6:])
    assert torch.equal(queue.rows, new[[5, 6, 2, 3, 4]])
    assert torch.equal(read, new[[5, 1, 2, 3, 4]]), "a step's gradients need the rows that were read"
    queue.push(torch.eye(3)[[0, 1, 2, 0, 1, 2, 0]])
    assert len(queue.rows) == 5


def test_the_nearest_row_is_that_of_the_largest_cosine() -> None:
    rows, z = (F.normalize(torch.randn(n, 4), dim=1) for n in (9, 6))
    for vector, found in zip(z, nearest(z, rows), strict=True):
        cosines = [float(vector @ row) for row in rows]
        assert torch.equal(found, rows[cosines.index(max(cosines))])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_all_processes_have_as_large_a_share_of_a_queue(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    queue, shares = Queue(2048, 3), []
    for rank in range(world):
        monkeypatch.setattr("selfsight.nn.process", lambda rank=rank: (rank, world))
        shares.append(queue.share())
    assert {len(share) for share in shares} == {2048 // world}
    assert torch.equal(torch.cat(shares), queue.rows[: 2048 // world * world])


@pytest.mark.parametrize("name", ["nnbyol", "nnsiam"])
def test_a_view_is_never_its_own_neighbour(name: str) -> None:
    method: Any = a_method(name, small=True)
    before = method.queue.rows.clone()
    z = F.normalize(torch.randn(8, before.shape[1]), dim=1)
    target = method.target(z, 4)
    assert torch.equal(target, nearest(z, before).roll(4, 0)), "its partner's, of what was there before"
    assert torch.equal(method.queue.rows[:4], z[:4])


def test_cosines_are_exact_within_autocast() -> None:
    a, b = (F.normalize(torch.randn(5, 64), dim=1) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = cosines(a.bfloat16(), b)
    assert found.dtype == torch.float32
    assert torch.allclose(found, a.bfloat16().float() @ b.T, atol=1e-6)
