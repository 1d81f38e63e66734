"""Queues and neighbours: in what order rows are overwritten, and what stands in for a view."""

import torch
import torch.nn.functional as F

from selfsight.nn import Queue, nearest


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
