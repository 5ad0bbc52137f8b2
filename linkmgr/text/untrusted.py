"""Text that a stranger wrote: a QEMU, a caller, the author of a domain's XML."""

from __future__ import annotations

import json
from typing import Any

#: Characters of a stranger's text that stand in a message, a log line or an answer of ours: every
#: error text of QEMU 4.2 to 11 fits, and a thousand of them kept are a fifth of a megabyte.
TEXT_LIMIT = 200
SENTENCE_LIMIT = 500  #: characters of a sentence of ours that strangers' names stand in
NAME_LIMIT = 40  #: characters of a name that is refused: enough to see which one it is


def printable(value: object, limit: int = TEXT_LIMIT) -> str:
    r"""Show a stranger's value on one line of text that moves no cursor and hides nothing.

    What Unicode does not call printable is escaped: control characters, line ends, ESC, the marks
    that turn the direction of writing, halves of surrogate pairs. Work and length are bounded by
    `limit`, whatever was given.

    :param value: a text, shown as it is; or anything else that JSON can say, shown as JSON.
    :param limit: characters of the answer at most; a longer text is cut and ends in ``...``.
    """
    text = value[: limit + 1] if isinstance(value, str) else _as_json(value, limit + 1)
    shown = "".join(each if each.isprintable() else _escaped(each) for each in text)
    if len(shown) <= limit:
        return shown
    room, kept = limit - 3, ""
    for each in text:
        part = each if each.isprintable() else _escaped(each)
        if len(kept) + len(part) > room:
            break
        kept += part
    return kept + "..."


def quoted(value: object, limit: int = NAME_LIMIT) -> str:
    """Show a stranger's name in quotes, letters of any script as they are; see `printable`."""
    return f"'{printable(value, limit)}'"


def is_nested_deeper_than(value: object, levels: int) -> bool:
    """Whether a value of JSON has more levels of objects and lists than that.

    What json itself refuses depends on Python: 3.11 some 1,000 levels, 3.14 only what exceeds the
    thread's stack.
    """
    level: list[Any] = [value]
    for _ in range(levels + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return False
        level = [
            child for each in level for child in (each.values() if isinstance(each, dict) else each)
        ]
    return True


def shell_word(text: str) -> str:
    """Return a text as one word of a command line in an advice, which a shell takes as it stands.

    With backslashes: the command stands in quotes, and with quotes of its own a word would be
    outside of those for a shell that is given them too.
    """
    if not text.isprintable():  # bash's form, with nothing in it that is special outside of it
        return f"$'{''.join(each if each.isalnum() else _in_bash(each) for each in text)}'"
    return "".join(each if _is_plain(each) else "\\" + each for each in text) or '""'


def ip_device(name: str) -> str:
    """Return a device's name as ip(8) takes it in an advice: a word of its own could be meant."""
    word = shell_word(name)
    return f"dev {word}" if name.isalpha() or name.startswith("-") else word


def shell_command(command: str, name: str, *options: str) -> str:
    """Return a command line that names something, which a shell takes as it stands.

    :param command: the words before the name, as a shell reads them.
    :param name: one argument; quoted if need be, after ``--`` if it begins with a dash.
    :param options: that follow.
    """
    if name.startswith("-"):
        return " ".join([command, *options, "--", shell_word(name)])
    return " ".join([command, shell_word(name), *options])


def _in_bash(character: str) -> str:
    number = ord(character)
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _is_plain(character: str) -> bool:
    return character.isalnum() or character in "_@%+=:,./-"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _as_json(value: object, limit: int) -> str:
    """The beginning of the JSON form of a value: no further than `limit` characters."""
    text = ""
    try:
        for part in json.JSONEncoder(ensure_ascii=False, default=_kind).iterencode(value):
            text += part[: limit - len(text)]
            if len(text) >= limit:
                break
    except (ValueError, TypeError):  # a number of too many digits, a key that is no text
        text += "?"
    return text


def _kind(value: object) -> str:
    return f"<{type(value).__name__}>"
