"""How a stranger's text is shown."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from linkmgr.text.untrusted import is_nested_deeper_than, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Device 'net0' not found", "Device 'net0' not found"),
        ("Größe: 3 µm, 網路", "Größe: 3 µm, 網路"),
        ("done\nNov 28 linkmgr[1]: all is well", "done\\nNov 28 linkmgr[1]: all is well"),
        ("\x1b[2J\x1b]0;mine\x07", "\\x1b[2J\\x1b]0;mine\\x07"),
        ("a\r\tb\x00\x7f\x9b", "a\\r\\tb\\x00\\x7f\\x9b"),
        ("\u202egpj.exe\u2066\u200b", "\\u202egpj.exe\\u2066\\u200b"),
        ("a\u2028b\u2029c\x85", "a\\u2028b\\u2029c\\x85"),
        ("\ud83d alone", "\\ud83d alone"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).encode()
    assert len(printable(text).splitlines()) == 1


@pytest.mark.parametrize("limit", [4, 10, 43, 200])
@pytest.mark.parametrize("text", ["x" * 1000, "\x1b" * 1000, "ab\u202e" * 400, "\ud800" * 500])
def test_a_long_text_is_cut_and_no_escape_is_cut_in_two(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.endswith("...")
    kept = shown.removesuffix("...")
    assert text.startswith(kept.encode().decode("unicode_escape"))


def test_a_text_that_just_fits_is_whole() -> None:
    assert printable("x" * 43, 43) == "x" * 43
    assert printable("x" * 44, 43) == "x" * 40 + "..."


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        (7, "7"),
        ({"a": ["b\n", 1.5]}, '{"a": ["b\\n", 1.5]}'),
        (b"raw", '"<bytes>"'),
        pytest.param(10**5000, "?", id="digits"),
        (float("nan"), "NaN"),
    ],
)
def test_what_is_no_text_is_shown_as_json(value: object, shown: str) -> None:
    assert printable(value) == shown


def test_a_text_of_megabytes_or_a_deep_nest_costs_no_time() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    wide = {str(number): [number] for number in range(300_000)}
    for value in ("\x1b" * 10_000_000, ["x"] * 1_000_000, deep, wide):
        began = time.process_time()
        assert 190 < len(printable(value)) <= 200
        assert time.process_time() - began < 0.05


def test_levels_are_counted_alike_on_every_python() -> None:
    deep: object = {"a": "text"}
    for _ in range(62):
        deep = [1, deep, {}]
    assert not is_nested_deeper_than(deep, 63)
    assert is_nested_deeper_than(deep, 62)
    assert is_nested_deeper_than({"a": [deep]}, 64)
    assert not is_nested_deeper_than("text", 0)


def test_levels_that_python_itself_reads(differs: Callable[[str, str], None]) -> None:
    try:
        deep = json.loads("[" * 20_000 + "]" * 20_000)
    except RecursionError:
        here = "refused by Python"
    else:
        here = "read by Python, refused by linkmgr"
        assert is_nested_deeper_than(deep, 64)
    differs("JSON of 20,000 levels", here)
