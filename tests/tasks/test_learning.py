"""Workers that draw examples outlive the signals that the main process answers."""

import multiprocessing
import os
import signal
import time

from torch.utils.data import DataLoader, Dataset

from selfsight.tasks.learning import outlive_signals


class Numbers(Dataset[float]):
    def __len__(self) -> int:
        return 500

    def __getitem__(self, row: int) -> float:
        return 1.0


def test_workers_go_on_at_the_signals_that_stop_a_training() -> None:
    """Ctrl-C and a cluster's SIGTERM reach all processes; the main one needs its workers until its step is done."""
    before = set(multiprocessing.active_children())
    loader = iter(DataLoader(Numbers(), batch_size=1, num_workers=1, worker_init_fn=outlive_signals))
    (worker,) = set(multiprocessing.active_children()) - before
    assert worker.pid is not None
    assert float(next(loader)) == 1
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
        time.sleep(0.1)
        assert [float(next(loader)) for _ in range(20)] == [1.0] * 20, "more than it had drawn before"
    assert [float(x) for x in loader] == [1.0] * 459
    worker.join(5)
    assert worker.exitcode == 0
