"""`linkmgr serve` again and again: see `forks`. Each is a `dying_service`."""

from __future__ import annotations

import sys
from pathlib import Path

from linkmgr.cli import main
from tests.integration.dying_service import arm
from tests.integration.forks import Forks, fork_each


class Nursery(Forks):
    """The service; ``async with`` starts none yet.

    :param folder: where its socket, its state, its log, and its note are; see `dying_service`.
    """

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "lm.sock"
        self.state = folder / "state"
        self.note = folder / "note"
        super().__init__(__name__, str(self.note), log=folder / "service.log")

    async def serve(self) -> None:
        """Start the service, unless it runs. A client of it waits until it answers."""
        if not self.running:
            config = self.note.with_name("linkmgr.toml")
            config.write_text("# defaults\n")
            await self.start(
                *("--socket", str(self.socket), "serve"),
                *("--state-dir", str(self.state), "--config", str(config)),
            )


def _linkmgr(words: list[str]) -> None:
    sys.argv[1:] = words
    main()


if __name__ == "__main__":
    import linkmgr.service.main  # noqa: F401 - what `serve` imports when it is called

    arm(Path(sys.argv[2]))
    fork_each(int(sys.argv[1]), _linkmgr)
