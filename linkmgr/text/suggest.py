"""Suggestions for a name that does not exist: what was meant, or which names there are.

The word may be a stranger's and the names may be many, so both are bounded.
"""

from __future__ import annotations

import difflib
import heapq
import itertools
from collections.abc import Collection

NAMES_SHOWN_MAX = 8  #: names in one sentence: more is a list, for which there are commands
SUGGESTIONS_MAX = 3  #: names that may have been meant
#: How alike they are at least, of 1: of four letters two may have changed places.
SIMILARITY_MIN = 0.7
#: Names that a word is compared with, and characters of each: 10 ms of the event loop at most.
COMPARED_MAX, COMPARED_LENGTH_MAX = 100, 32
RANKED_MAX = 2000  #: names from which those are taken that share most letters with the word: 2 ms


def close_matches(word: str, names: Collection[str]) -> list[str]:
    """Names that look like a word, the closest first, at most `SUGGESTIONS_MAX`."""
    word = word[:COMPARED_LENGTH_MAX]
    if len(names) > COMPARED_MAX:
        letters = set(word)
        names = heapq.nlargest(
            COMPARED_MAX,
            itertools.islice(names, RANKED_MAX),
            key=lambda name: (
                len(letters & set(name[:COMPARED_LENGTH_MAX])),
                -abs(len(name) - len(word)),
            ),
        )
    shorter = {name[:COMPARED_LENGTH_MAX]: name for name in names}
    by_case = {short.lower(): short for short in shorter}
    found = difflib.get_close_matches(word, shorter, SUGGESTIONS_MAX, SIMILARITY_MIN)
    if not found and word.lower() in by_case:
        found = [by_case[word.lower()]]
    return [shorter[short] for short in found]


def join_names(names: Collection[str]) -> str:
    """Names as a text, at most `NAMES_SHOWN_MAX` of them, then how many more there are."""
    first = heapq.nsmallest(NAMES_SHOWN_MAX, names)
    more = len(names) - len(first)
    return (", ".join(first) or "none") + (f" and {more} more" if more else "")


def did_you_mean(word: str, names: Collection[str]) -> str:
    """``did you mean blue or blue2?``; empty when no name is close."""
    *most, last = close_matches(word, names) or [""]
    named = f"{', '.join(most)} or {last}" if most else last
    return f"did you mean {named}?" if named else ""


def hint_for_unknown(word: str, names: Collection[str], there: str, otherwise: str = "") -> str:
    """A hint for a name that does not exist: what may have been meant, and which there are.

    :param there: leads in the names: ``the networks are``.
    :param otherwise: what to do if none of them was meant, such as ``create it first``.
    """
    rest = f"{otherwise}; {there}" if otherwise else there
    said = did_you_mean(word, names)
    if said:
        rest = f"{said} Else {rest}" if otherwise else f"{said} {rest[0].upper()}{rest[1:]}"
    return f"{rest}: {join_names(names)}"
