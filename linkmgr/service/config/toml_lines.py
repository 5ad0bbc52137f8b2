"""Finds on which line of a TOML document each key is, which `tomllib` does not tell.

It reads only documents that tomllib has accepted, so it need not notice any mistake.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

Path = tuple[str | int, ...]

_GAP = re.compile(r"(?:\s|#[^\n]*)*")  # between statements and between the elements of an array
_BLANK = re.compile(r"[ \t]*")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_VALUE = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|[^,\]}#\n]+",
    re.DOTALL,
)


def key_lines(text: str) -> dict[Path, int]:
    """Return the line, counted from 1, on which each key and each array element begins.

    :param text: a TOML document that tomllib accepts.
    :return: from the path of the key, such as ``("access", "rules", 0, "user")``.
    """
    return _Scanner(text).lines


def line_of(lines: Mapping[Path, int], path: Path) -> int | None:
    """Return the line of a path, or of the innermost thing around it that has one."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


class _Scanner:
    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._line, self._counted = 1, 0
        self._elements: dict[Path, int] = {}  # of each array of tables, so far
        table: Path = ()
        self._skip(_GAP)
        while self._at < len(self._text):
            if self._took("[["):
                array = self._resolve((), self._key())
                number = self._elements[array] = self._elements.get(array, -1) + 1
                table = (*array, number)
                self._note(table, len(array))
                self._took("]]")
            elif self._took("["):
                table = self._resolve((), self._key())
                self._took("]")
            else:
                self._pair(table)
            self._skip(_GAP)

    def _pair(self, table: Path) -> None:
        path = self._resolve(table, self._key(), len(table))
        self._took("=")
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: Path) -> None:
        self._note(path, len(path) - 1)
        if self._took("["):
            number = 0
            self._skip(_GAP)
            while not self._took("]"):
                self._value((*path, number))
                number += 1
                self._separator()
        elif self._took("{"):
            self._skip(_GAP)
            while not self._took("}"):
                self._pair(path)
                self._separator()
        else:
            self._skip(_VALUE)

    def _separator(self) -> None:
        self._skip(_GAP)
        self._took(",")
        self._skip(_GAP)

    def _key(self) -> list[str]:
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            part = self._skip(_PART)
            parts.append(tomllib.loads(f"k={part}")["k"] if part[0] in "\"'" else part)
            self._skip(_BLANK)
            if not self._took("."):
                return parts

    def _resolve(self, table: Path, parts: list[str], known: int = 0) -> Path:
        """The path that a key means: inside an array of tables, the last element so far."""
        path = table
        for number, part in enumerate(parts):
            path = (*path, part)
            if path in self._elements and number < len(parts) - 1:
                path = (*path, self._elements[path])
        self._note(path, known)
        return path

    def _note(self, path: Path, known: int) -> None:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        for length in range(known + 1, len(path) + 1):
            self.lines.setdefault(path[:length], self._line)

    def _took(self, token: str) -> bool:
        if self._text.startswith(token, self._at):
            self._at += len(token)
            return True
        return False

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return match[0]
