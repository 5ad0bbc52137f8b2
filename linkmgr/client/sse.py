"""Server-sent events as in the HTML standard, section 9.2: bytes in, messages out."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field

MAX_MESSAGE = 1 << 20  #: characters of one message; a longer one is not from our service


class SseError(ValueError):
    """What came is no stream of server-sent events."""


@dataclass(frozen=True)
class Message:
    """One message.

    :param id: the last id that was sent, with this message or before; what to resume from.
    """

    kind: str
    data: str
    id: str | None


@dataclass
class Parser:
    """Takes the bytes as they come, in pieces of any size."""

    last_id: str | None = None
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    _rest: str = ""
    _id: str | None = None  #: counts from the end of its message
    _kind: str = ""
    _data: list[str] = field(default_factory=list)

    def feed(self, chunk: bytes) -> list[Message]:
        """Return the messages that are complete now.

        :raise SseError: when a message is longer than it can be.
        """
        text = self._rest + self._decoder.decode(chunk)
        # A CR at the very end may be the first half of a CRLF.
        held = "\r" if text.endswith("\r") else ""
        text = text[: len(text) - len(held)].replace("\r\n", "\n").replace("\r", "\n")
        *lines, self._rest = text.split("\n")
        self._rest += held
        messages = [message for line in lines if (message := self._line(line))]
        if len(self._rest) + sum(len(line) + 1 for line in self._data) > MAX_MESSAGE:
            raise SseError(f"a message is longer than {MAX_MESSAGE} characters")
        return messages

    def _line(self, line: str) -> Message | None:
        if not line:
            return self._complete()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        return None  # a comment, such as a heartbeat, has no name

    def _complete(self) -> Message | None:
        kind, data = self._kind or "message", self._data
        self._kind, self._data = "", []
        if self._id is not None:
            self.last_id, self._id = self._id or None, None
        return Message(kind, "\n".join(data), self.last_id) if data else None
