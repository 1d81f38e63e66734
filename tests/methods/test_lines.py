"""A method's file is short, and what three share stands in one place."""

import itertools
from pathlib import Path

import pytest

from selfsight import methods

FOLDER = Path(methods.__file__).parent
MOST, SHARED = 150, 6


def code(name: str) -> list[str]:
    """The lines of a method's file that say something of it: not blank ones, and no imports."""
    lines = [line.strip() for line in (FOLDER / f"{name}.py").read_text().splitlines()]
    return [line for line in lines if line and not line.startswith(("import ", "from "))]


@pytest.mark.parametrize("name", methods.names())
def test_no_file_is_long(name: str) -> None:
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= MOST


def test_no_two_methods_share_six_lines() -> None:
    seen: dict[tuple[str, ...], str] = {}
    for name in methods.names():
        lines = code(name)
        for run in {tuple(lines[i : i + SHARED]) for i in range(len(lines) - SHARED + 1)}:
            assert run not in seen, f"{seen[run]} and {name} share:\n" + "\n".join(run)
            seen[run] = name


def test_there_are_as_many_as_promised() -> None:
    assert len(methods.names()) >= 28
    assert all(a < b for a, b in itertools.pairwise(methods.names()))
