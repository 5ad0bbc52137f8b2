"""Two hundred clients at once: for every NIC, all answers fit one order of the verbs."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from linkmgr import Client
from linkmgr.errors import LinkmgrError, PortInUse
from linkmgr.model import LinkState, Nic, NicState, Outcome
from tests.integration.lab import Lab
from tests.integration.test_cli import Host, make_host
from tests.linearizability import NEVER, Call, NotLinearizable, find_order

ROOT = Path(__file__).parents[2]
SHARED = "blue:shared"  #: the port that all NICs want
SILENT = "silent"


@dataclass(frozen=True)
class State:
    """What a caller can know of a NIC."""

    port: str | None
    attachment: str | None
    wanted: LinkState

    @classmethod
    def of(cls, nic: Nic) -> State:
        on = nic.connection
        port, attachment = (str(on.port), on.attachment) if on else (None, None)
        return cls(port, attachment, nic.wanted_link)

    def is_on(self, target: str) -> bool:
        """Whether plugging the target does nothing."""
        return self.port is not None and target in (self.port, self.port.partition(":")[0])


START = State(None, None, LinkState.UP)
Model = Callable[[State], State | None]


def after_plug(target: str, got: Outcome) -> Model:
    seen = State.of(got.nic)

    def after(now: State) -> State | None:
        if not got.changed:
            return now if now == seen and now.is_on(target) else None
        new = seen.port == target and seen.attachment != now.attachment
        return seen if new and not now.is_on(target) and seen.wanted is now.wanted else None

    return after


def after_unplug(got: Outcome | None) -> Model:
    def after(now: State) -> State | None:
        then = replace(now, port=None, attachment=None)
        fits = got is None or (State.of(got.nic) == then and got.changed is (now != then))
        return then if fits else None

    return after


def after_set_link(wanted: LinkState, got: Outcome | None) -> Model:
    def after(now: State) -> State | None:
        then = replace(now, wanted=wanted)
        fits = got is None or (State.of(got.nic) == then and got.changed is (now != then))
        return then if fits else None

    return after


def after_look(got: Nic) -> Model:
    return lambda now: now if State.of(got) == now else None


def after_refusal(target: str) -> Model:
    """The port was another's, so it was not this NIC's."""
    return lambda now: None if now.port == target else now


def link_is_right(nic: Nic) -> bool:
    """Whether the guest sees what it should, when a verb has just ended."""
    plugged = nic.state is NicState.PLUGGED
    return nic.link is (nic.wanted_link if plugged else LinkState.DOWN)


@dataclass
class Load:
    """Many clients, and the history of each NIC."""

    socket: Path
    nics: list[str]
    histories: dict[str, list[Call[State]]] = field(default_factory=dict)
    given_up: int = 0
    refused: int = 0

    async def run(self, clients: int, verbs: int) -> None:
        self.histories = {nic: [] for nic in self.nics}
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(number, verbs))
        async with Client(self.socket) as links:
            for nic in self.nics:
                await self._look(links, nic, "the end")

    def check(self) -> None:
        """See that there is an order of each NIC's calls.

        :raise NotLinearizable: there is none.
        """
        for nic, history in self.histories.items():
            try:
                find_order(history, START)
            except NotLinearizable as error:
                raise NotLinearizable(f"{nic}: {error}") from None

    async def _client(self, number: int, verbs: int) -> None:
        dice = random.Random(number)
        async with Client(self.socket) as links:
            for _ in range(verbs):
                nic = dice.choice(self.nics)
                who = f"client {number}"
                match dice.choices(("plug", "unplug", "link", "look"), (35, 15, 20, 30))[0]:
                    case "plug":
                        own = f"red:{nic.replace('/', '-')}"
                        target = dice.choice(["blue", "red", "green", own, SHARED])
                        await self._plug(links, nic, who, target)
                    case "unplug":
                        await self._change(
                            nic, f"{who} unplug", links.unplug(nic), after_unplug, dice
                        )
                    case "link":
                        wanted = dice.choice(list(LinkState))
                        await self._change(
                            nic,
                            f"{who} link {wanted}",
                            links.set_link(nic, wanted),
                            partial(after_set_link, wanted),
                            dice,
                        )
                    case _:
                        await self._look(links, nic, who)

    async def _plug(self, links: Client, nic: str, who: str, target: str) -> None:
        called, what = time.monotonic(), f"{who} plug {target}"
        try:
            got = await links.plug(nic, target, notify=SILENT)
        except PortInUse:
            self.refused += 1
            note = f"{what}: is in use"
            # Only the port that all NICs want may be another's.
            model = after_refusal(target) if target == SHARED else _cannot_be
            self._add(nic, Call(note, called, time.monotonic(), model, looks=True))
        except LinkmgrError as error:
            self._failed(nic, what, called, error)
        else:
            self._answered(nic, what, called, got, after_plug(target, got))

    async def _change(
        self,
        nic: str,
        what: str,
        asking: Coroutine[Any, Any, Outcome],
        model: Callable[[Outcome | None], Model],
        dice: random.Random,
    ) -> None:
        """Run a verb; now and then go away without waiting for the answer."""
        called = time.monotonic()
        patience = dice.uniform(0.002, 0.02) if dice.random() < 0.05 else None
        try:
            async with asyncio.timeout(patience):
                got = await asking
        except TimeoutError:
            self.given_up += 1
            self._add(nic, Call(f"{what}: not waited for", called, NEVER, model(None)))
        except LinkmgrError as error:
            self._failed(nic, what, called, error)
        else:
            self._answered(nic, what, called, got, model(got))

    async def _look(self, links: Client, nic: str, who: str) -> None:
        called = time.monotonic()
        got = await links.nic(nic)
        what = f"{who} look: {State.of(got)}"
        self._add(nic, Call(what, called, time.monotonic(), after_look(got), looks=True))

    def _answered(self, nic: str, what: str, called: float, got: Outcome, model: Model) -> None:
        what += f": changed={got.changed}, {State.of(got.nic)}, link {got.nic.link}"
        right = link_is_right(got.nic)
        looks = not got.changed
        after = model if right else _cannot_be
        self._add(nic, Call(what, called, time.monotonic(), after, looks=looks))

    def _failed(self, nic: str, what: str, called: float, error: LinkmgrError) -> None:
        self._add(nic, Call(f"{what}: {error}", called, time.monotonic(), _cannot_be))

    def _add(self, nic: str, call: Call[State]) -> None:
        self.histories[nic].append(call)


def _cannot_be(_: State) -> State | None:
    return None


async def prepared(host: Host, lab: Lab, guests: int, nics: int) -> list[str]:
    """Networks, guests that do not run, and the shared port; the names of the NICs."""
    names = []
    async with Client(host.socket) as links:
        for name in ("blue", "red"):
            await lab.network(name)
            await links.create_network(name, "bridge", bridge=f"br-{name}")
        await lab.network("green")
        await links.create_network("green", "direct", parent="v-green")
        await links.create_port(*SHARED.split(":"))
        for number in range(guests):
            vm = f"web{number + 1}"
            guest = await lab.guest(vm, nics=nics, boot=False, add=False)
            names += [str(nic.ref) for nic in await links.add_vm(vm, guest.qmp_path)]
        for nic in names:
            await links.create_port("red", nic.replace("/", "-"))
    return names


async def cleared(host: Host, nics: list[str]) -> None:
    async with Client(host.socket) as links:
        for vm in {nic.partition("/")[0] for nic in nics}:
            await links.remove_vm(vm)


async def test_the_answers_to_two_hundred_clients_fit_one_order_for_each_nic(
    tmp_path: Path, lab: Lab
) -> None:
    async with make_host(tmp_path) as host:
        nics = await prepared(host, lab, guests=4, nics=2)
        load = Load(host.socket, nics)
        began = time.monotonic()
        async with asyncio.timeout(60):  # no deadlock
            await load.run(clients=200, verbs=6)
        import pickle
        Path("/tmp/h/hist.txt").write_text("\n".join(f"{nic}\t{c.called:.6f}\t{c.returned:.6f}\t{c.what}" for nic, h in load.histories.items() for c in sorted(h, key=lambda c: c.called)))
        print(f"{time.monotonic() - began:.1f} s", load.given_up, load.refused)
        load.check()
        print(f"{time.monotonic() - began:.1f} s")
        assert load.given_up, "no client went away"
        assert load.refused, "no two NICs wanted the shared port at once"
        async with Client(host.socket) as links:
            assert await links.check() == []
            holders = [c for c in await links.connections() if str(c.port) == SHARED]
            assert len(holders) <= 1
        assert "Traceback" not in host.said()
        await cleared(host, nics)


async def test_a_service_without_the_lock_of_a_nic_is_caught(tmp_path: Path, lab: Lab) -> None:
    broken = f"env PYTHONPATH={ROOT} {sys.executable} -m tests.integration.unlocked_service serve"
    async with make_host(tmp_path, broken) as host:
        nics = await prepared(host, lab, guests=1, nics=2)
        load = Load(host.socket, nics)
        async with asyncio.timeout(60):
            await load.run(clients=12, verbs=3)
        with pytest.raises(NotLinearizable) as caught:
            load.check()
        if 0: print(caught.value)
