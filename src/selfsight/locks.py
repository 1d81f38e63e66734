"""One process at a time: files that are locked while a folder is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from selfsight.errors import SelfsightError
from selfsight.progress import say


@contextmanager
def locked(path: Path, busy: str, *, wait: bool = True, remedy: str = "") -> Iterator[None]:
    """Hold the lock of this file; the operating system frees it even if the process is killed.

    While another process holds it, say `busy` and wait; or, without `wait`, raise a SelfsightError of these words.
    SelfsightError, too, which ends in `remedy`, where the file can't be written.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise SelfsightError(busy) from None
            say(f"{busy}; waiting for it")
            lock.acquire()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SelfsightError(f"{path.parent}: cannot be written: {reason}{remedy}") from error
    try:
        yield
    finally:
        lock.release()
