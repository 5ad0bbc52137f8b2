"""The commands that README.md shows: lines that are indented, outside of what is fenced."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "README.md").read_text()

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(section: str) -> list[str]:
    """The commands of a section, without the remarks behind them."""
    body = _FENCED.sub("", TEXT).partition(f"## {section}\n")[2].partition("\n## ")[0]
    body = re.sub(r" \\\n +", " ", body)  # a line that is continued is one command
    lines: list[str] = re.findall(r"^    (\S.*)$", body, re.MULTILINE)
    return [line.partition("  # ")[0].rstrip() for line in lines]


def sections() -> list[str]:
    """The sections that show commands."""
    return [each for each in re.findall(r"^## (.*)$", TEXT, re.MULTILINE) if blocks_of(each)]


def fenced() -> list[tuple[str, str]]:
    """What is fenced, each with its language."""
    return _FENCED.findall(TEXT)
