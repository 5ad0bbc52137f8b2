"""File descriptors that have one owner."""

from __future__ import annotations

import os
import warnings
from typing import Self

from linkmgr.aio.threads import run_in_thread


class Fd:
    """Owns a file descriptor: closing, handing over and copying it are explicit.

    :param number: an open descriptor that nobody else closes from now on.
    """

    def __init__(self, number: int) -> None:
        self._number: int | None = number

    @property
    def number(self) -> int:
        """The descriptor, borrowed: the caller must not close it.

        :raise ValueError: when it was closed or handed over.
        """
        if self._number is None:
            raise ValueError("this file descriptor was closed or handed over")
        return self._number

    @property
    def closed(self) -> bool:
        """Whether this object owns nothing any more."""
        return self._number is None

    def dup(self) -> Fd:
        """Return a second owner of the same open file, closed on exec.

        :raise ValueError: when it was closed or handed over.
        :raise OSError: when the process has no descriptor left.
        """
        return Fd(os.dup(self.number))

    def detach(self) -> int:
        """Move the descriptor out; the caller owns it now.

        :raise ValueError: when it was closed or handed over.
        """
        number = self.number
        self._number = None
        return number

    def close(self) -> None:
        """Close it; nothing happens the second time.

        The last descriptor of a tap takes about 20 ms (the kernel removes the device): in an event
        loop use `close_in_thread`.
        """
        if self._number is not None:
            os.close(self.detach())

    async def close_in_thread(self) -> None:
        """Close it without holding up the event loop; nothing happens the second time.

        It is closed on return, also when the caller was cancelled meanwhile.
        """
        if self._number is not None:
            await run_in_thread(os.close, self.detach())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Fd {'closed' if self._number is None else self._number}>"

    def __del__(self) -> None:
        if getattr(self, "_number", None) is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()
