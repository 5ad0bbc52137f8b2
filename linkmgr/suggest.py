"""Suggestions for a name that does not exist: what was meant, or which names there are.

The word may be a stranger's and the names may be many, so both are bounded.
"""

from __future__ import annotations

import difflib
import heapq
import itertools
from collections.abc import Collection

SHOWN = 8  #: names in one sentence: more is a list, for which there are commands
CLOSE = 3  #: names that may have been meant
#: Names that a word is compared with, and characters of each: 10 ms of the event loop at most.
COMPARED, LONGEST = 100, 32
RANKED = 2000  #: names from which those are taken that share most letters with the word: 2 ms


def close_to(word: str, names: Collection[str]) -> list[str]:
    """Names that look like a word, the closest first, at most `CLOSE`."""
    word = word[:LONGEST]
    if len(names) > COMPARED:
        letters = set(word)
        names = heapq.nlargest(
            COMPARED,
            itertools.islice(names, RANKED),
            key=lambda name: (len(letters & set(name[:LONGEST])), -abs(len(name) - len(word))),
        )
    shorter = {name[:LONGEST]: name for name in names}
    by_case = {short.lower(): short for short in shorter}
    found = difflib.get_close_matches(word, shorter, CLOSE)
    if not found and word.lower() in by_case:
        found = [by_case[word.lower()]]
    return [shorter[short] for short in found]


def listed(names: Collection[str]) -> str:
    """Names as a text, at most `SHOWN` of them, then how many more there are."""
    first = heapq.nsmallest(SHOWN, names)
    more = len(names) - len(first)
    return (", ".join(first) or "none") + (f" and {more} more" if more else "")


def meant(word: str, names: Collection[str]) -> str:
    """``did you mean blue or blue2?``; empty when no name is close."""
    *most, last = close_to(word, names) or [""]
    named = f"{', '.join(most)} or {last}" if most else last
    return f"did you mean {named}?" if named else ""


def instead(word: str, names: Collection[str], kind: str, else_: str = "") -> str:
    """A hint for a name that does not exist: what may have been meant, else which there are.

    :param kind: what the names are of, in the plural: ``networks``.
    :param else_: what to do if none of them was meant, such as ``create it first``.
    """
    if said := meant(word, names):
        return f"{said} Else {else_}" if else_ else said
    there = f"the {kind} are: {listed(names)}"
    return f"{else_}; {there}" if else_ else there
