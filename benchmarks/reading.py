"""How much a reader must read: the code of all functions that a method's training enters, in lines, by file.

    python benchmarks/reading.py simclr

Trains a tiny network for three steps under a profiling hook and adds up the code lines (no blanks, comments,
docstrings) of every function entered, and of the classes and constants of these files, from the call of `pretrain` to
the saved weights. Left out is what surrounds learning and is the same for all methods (AROUND): the run folder, whether
it is new or resumed and what is written to it; decoding and caching images and how they reach the device; messages and
memory figures; the watchers (metrics, health, checkpoints, bar, pictures), with what only these enter (WATCHERS), such
as a method's `picture`.
"""

import ast
import io
import sys
import tempfile
import tokenize
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
import torch

import selfsight
from selfsight.pretraining import pretrain
from selfsight.training import Pretrain

SOURCE = Path(selfsight.__file__).parent
WATCHERS = ("watch.py", "pictures.py", "evaluate")
AROUND = {
    *WATCHERS, "api.py", "pretraining.py", "run.py", "memory.py", "progress.py", "errors.py",
    "data/__init__.py", "data/sources.py", "data/cache.py", "data/feed.py", "data/decode.py", "data/folder.py",
    "data/formats.py", "data/listing.py", "data/labels.py", "data/tiff.py",
}  # fmt: skip


def watching(frame: FrameType | None) -> bool:
    """Return whether a watcher is among the callers of this frame."""
    watchers = tuple(str(SOURCE / name) for name in WATCHERS)
    while frame is not None:
        if frame.f_code.co_filename.startswith(watchers):
            return True
        frame = frame.f_back
    return False


def entered(method: str) -> dict[Path, set[CodeType]]:
    """Return the code objects of this package that a short training enters, by file."""
    codes: dict[Path, set[CodeType]] = defaultdict(set)

    def hook(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(SOURCE)) and not watching(frame):
            codes[Path(frame.f_code.co_filename)].add(frame.f_code)

    images = torch.randint(0, 256, (64, 24, 24, 3), dtype=torch.uint8).numpy()
    config = Pretrain(out=Path(tempfile.mkdtemp()) / "run", backbone="test_resnet", epochs=3, batch_size=64)
    sys.setprofile(hook)
    try:
        pretrain(np.asarray(images), method, config)
    finally:
        sys.setprofile(None)
    return codes


def code_lines(text: str) -> set[int]:
    """Return the numbers of the lines that hold code."""
    thin = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = {
        n
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in thin
        for n in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def read(path: Path, codes: set[CodeType]) -> int:
    """Return the code lines of a file that a reader needs: entered functions, and classes that hold one or are data."""
    text = path.read_text()
    lines, wanted = code_lines(text), set[int]()
    starts = {code.co_firstlineno for code in codes}

    def visit(node: ast.AST, inside: bool) -> bool:
        """Collect a node's lines; return whether it was entered."""
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if first in starts or node.lineno in starts:
                wanted.update(range(first, (node.end_lineno or first) + 1))
                return True
            return False
        if isinstance(node, ast.ClassDef):
            used = [visit(child, True) for child in node.body]
            if any(used) or all(not isinstance(c, ast.FunctionDef) for c in node.body):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                wanted.update(range(first, node.lineno + 1))
                for child in node.body:
                    if isinstance(child, ast.AnnAssign | ast.Assign):
                        wanted.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
                return True
            return False
        if not inside and isinstance(node, ast.AnnAssign | ast.Assign):
            wanted.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        return False

    for node in ast.parse(text).body:
        visit(node, False)
    return len(lines & wanted)


def main() -> None:
    """Print the table."""
    total, files = 0, 0
    for path, codes in sorted(entered(sys.argv[1]).items()):
        name = path.relative_to(SOURCE).as_posix()
        if name in AROUND or name.split("/")[0] in AROUND:
            continue
        count = read(path, codes)
        total, files = total + count, files + 1
        print(f"{count:5}  {name}")
    print(f"{total:5}  code lines in {files} files")


if __name__ == "__main__":
    main()
