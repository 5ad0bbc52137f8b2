"""Line counts of Python and shell files: code, docstrings and comments, blank lines."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Tokens that are no code by themselves.
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
          tokenize.ENCODING, tokenize.ENDMARKER}  # fmt: skip
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Lines:
    """The lines of some files, each line counted once.

    :param text: in docstrings and comments.
    """

    files: int = 0
    code: int = 0
    text: int = 0
    blank: int = 0

    def __add__(self, other: Lines) -> Lines:
        return Lines(self.files + other.files, self.code + other.code, self.text + other.text,
                     self.blank + other.blank)  # fmt: skip

    @property
    def all(self) -> int:
        """All of them."""
        return self.code + self.text + self.blank


def of_python(source: str) -> Lines:
    """Count the lines of a Python file. A line with code and a comment is code."""
    explains = set(_docstrings(ast.parse(source)))
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in SILENT
        for line in range(token.start[0], token.end[0] + 1)
    } - explains
    return _count(source, code)


def _docstrings(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            yield from range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)


def of_shell(source: str) -> Lines:
    """Count the lines of a shell script; its first one, which names the shell, is code."""
    lines = enumerate(source.splitlines(), 1)
    code = {
        n for n, line in lines if line.strip() and (n == 1 or not line.lstrip().startswith("#"))
    }
    return _count(source, code)


def _count(source: str, code: set[int]) -> Lines:
    rest = [line for n, line in enumerate(source.splitlines(), 1) if n not in code]
    blank = sum(not line.strip() for line in rest)
    return Lines(1, len(code), len(rest) - blank, blank)


def of_file(path: Path) -> Lines | None:
    """Count the lines of a Python or shell file; nothing of any other."""
    if path.suffix not in ("", ".py", ".sh"):
        return None
    source = path.read_text()
    first = source.partition("\n")[0]
    if path.suffix == ".py" or (first.startswith("#!") and "python" in first):
        return of_python(source)
    return of_shell(source) if first.startswith("#!") else None


def of_tree(root: Path) -> dict[Path, Lines]:
    """Count the lines of a folder's own files and, by itself, of each folder directly in it."""
    counted: dict[Path, Lines] = {}
    for path in sorted(root.rglob("*")):
        within = path.relative_to(root).parts
        if not path.is_file() or any(part.startswith((".", "__pycache__")) for part in within):
            continue
        if (lines := of_file(path)) is not None:
            folder = root if len(within) == 1 else root / within[0]
            counted[folder] = counted.get(folder, Lines()) + lines
    return counted
