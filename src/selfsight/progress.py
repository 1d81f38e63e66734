"""One look for all progress bars: done/total, speed, time left; on stderr, quiet when it is no terminal."""

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")

console = Console(stderr=True)


class SpeedColumn(ProgressColumn):
    """Items a second, with the unit that the task names."""

    def render(self, task: Task) -> Text:
        """Return for example '1,195 images/s', or nothing before the first estimate."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="cyan")


def bar(transient: bool = False) -> Progress:
    """Return a progress bar; tasks added to it must carry a field `unit`, for example 'images'."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        SpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )


def track(items: Iterable[T], description: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield the items while a bar shows how far, how fast and how long still.

    Where stderr is no terminal, say once at the end what was done and how fast, so that logs stay short.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    start, done = time.monotonic(), 0
    with bar() as progress:
        task = progress.add_task(description, total=total, unit=unit, note="")
        for item in items:
            yield item
            done += 1
            progress.advance(task)
    if not console.is_terminal and done:
        seconds = time.monotonic() - start
        say(f"{description}: {done:,} {unit} in {seconds:.1f} s ({done / max(seconds, 1e-9):,.0f}/s)")


def say(message: str) -> None:
    """Print a line for the reader on stderr, so that stdout stays free for results."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)
