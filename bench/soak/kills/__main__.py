"""``python -m bench.soak.kills``: kill, start, look; 1 at the first fault."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.soak.kills.world import Faults, make_world
from linkmgr.testing import enter_sandbox

#: At least so many of the kills must have come before the work was done, in percent.
INTERRUPTED = 30


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="in all worlds together")
    parser.add_argument("--worlds", type=int, default=3, help="at a time")
    parser.add_argument("--minutes", type=float, default=30.0, help="at most")
    parser.add_argument("--seed", default=None, help="of the dice; by default a new one")
    parser.add_argument("--world", type=int, help=argparse.SUPPRESS)  # be that one
    return parser.parse_args()


async def be_world(options: argparse.Namespace) -> int:
    """Kill until there were enough kills or the time is over; tell the outcome as JSON."""
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="linkmgr-kills-") as folder:
        async with make_world(Path(folder), f"{options.seed}-{options.world}") as world:
            fault = None
            try:
                while world.kills.total() < options.kills and time.monotonic() < end:
                    await world.kill_once()
            except Faults as error:
                fault = f"after kill {world.kills.total()}: {error}"
            said = world.nursery.said()
            if fault is None and "Traceback" in said:
                fault = said[said.index("Traceback") :][:4000]
            outcome = {"kills": world.kills, "interrupted": world.interrupted, "fault": fault}
            print(json.dumps(outcome), flush=True)
            return 1 if fault else 0


async def run_worlds(options: argparse.Namespace) -> int:
    """Run all worlds side by side and add up what they tell."""
    begun = time.monotonic()
    print(f"seed {options.seed}, {options.worlds} worlds, {options.kills} kills", flush=True)
    share = -(-options.kills // options.worlds)

    async def one(number: int) -> str:
        words = ["--kills", share, "--minutes", options.minutes, "--seed", options.seed]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.soak.kills", "--world", str(number),
            *(str(word) for word in words), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        return out.decode()

    kills: Counter[str] = Counter()
    interrupted, faults = 0, []
    for number, said in enumerate(await asyncio.gather(*map(one, range(options.worlds)))):
        try:
            told = json.loads(said.splitlines()[-1])
        except (ValueError, IndexError):
            faults.append(f"world {number} ended without a word")
            continue
        kills += Counter(told["kills"])
        interrupted += told["interrupted"]
        faults += [f"world {number} {told['fault']}"] if told["fault"] else []
    total = kills.total()
    if total < options.kills:
        faults.append(f"only {total} kills")
    if interrupted * 100 < INTERRUPTED * total:
        faults.append(f"only {interrupted} of {total} kills came before the work was done")
    counts = ", ".join(f"{count} in {what}" for what, count in sorted(kills.items()))
    seconds = time.monotonic() - begun
    print(f"{total} kills ({counts}), {interrupted} before the work was done, {seconds:.0f} s")
    for fault in faults:
        print(fault)
    print("nothing lost, nothing left, nothing taken" if not faults else f"seed {options.seed}")
    return 1 if faults else 0


def main() -> int:
    """Be one world, or run them."""
    options = arguments()
    if options.seed is None:
        options.seed = f"{random.randrange(1 << 32):08x}"
    if options.world is None:
        return asyncio.run(run_worlds(options))
    enter_sandbox()
    return asyncio.run(be_world(options))


if __name__ == "__main__":
    sys.exit(main())
