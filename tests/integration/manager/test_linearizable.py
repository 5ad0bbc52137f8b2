"""Two hundred clients at once: for every NIC, all answers fit one order of the verbs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from linkmgr import Client
from linkmgr.api import LinkApi
from linkmgr.errors import LinkmgrError, PortInUse
from linkmgr.model import Finding, LinkState, Nic, NicState, Outcome
from tests.integration.cli.test_cli import Host, make_host
from tests.integration.faulty_service import command
from tests.integration.lab import Lab
from tests.linearizability import NEVER, Call, NotLinearizable, find_order

SHARED = "blue:shared"  #: the port that all NICs want
SILENT = "silent"


@dataclass(frozen=True)
class State:
    """What a caller can know of a NIC.

    :param since: since when it is in its place.
    :param told: whether anybody was told since when; if not it is some time after `since`.
    """

    port: str | None
    attachment: str | None
    since: datetime
    wanted: LinkState
    told: bool = True

    @classmethod
    def of(cls, nic: Nic) -> State:
        on = nic.connection
        port, attachment = (str(on.port), on.attachment) if on else (None, None)
        return cls(port, attachment, nic.since, nic.wanted_link)

    def is_on(self, target: str) -> bool:
        """Whether plugging the target does nothing."""
        return self.port is not None and target in (self.port, self.port.partition(":")[0])

    def seen_as(self, nic: Nic) -> State | None:
        """What is known once it was seen so, if it can be."""
        seen = State.of(nic)
        same = replace(self, since=seen.since, told=True) == seen
        return seen if same and self._may_be_since(seen.since) else None

    def moved_to(self, nic: Nic) -> State | None:
        """What is known once it was put into another place, if it can have been put from here."""
        seen = State.of(nic)
        new = seen.port is None or seen.attachment != self.attachment
        later = self.since < seen.since
        return seen if later and new and seen.wanted is self.wanted else None

    def unplugged(self) -> State:
        """What is known once it was unplugged and nobody was told."""
        return State(None, None, self.since, self.wanted, told=False)

    def is_past(self, nic: Nic) -> bool:
        """Whether it cannot be seen so any more."""
        return self.since > nic.since

    def _may_be_since(self, since: datetime) -> bool:
        return since == self.since if self.told else since > self.since


Model = Callable[[State], State | None]


def after_plug(target: str, got: Outcome) -> Model:
    def after(now: State) -> State | None:
        if got.changed:
            there = str(got.nic.connection and got.nic.connection.port) == target
            return now.moved_to(got.nic) if there and not now.is_on(target) else None
        return now.seen_as(got.nic) if now.is_on(target) else None

    return after


def after_unplug(got: Outcome | None) -> Model:
    def after(now: State) -> State | None:
        if got is None:
            return now.unplugged() if now.port else now
        if got.nic.connection or got.changed is (now.port is None):
            return None
        return now.moved_to(got.nic) if got.changed else now.seen_as(got.nic)

    return after


def after_set_link(wanted: LinkState, got: Outcome | None) -> Model:
    def after(now: State) -> State | None:
        then = replace(now, wanted=wanted)
        if got is None:
            return then
        return then.seen_as(got.nic) if got.changed is (now != then) else None

    return after


def after_look(got: Nic) -> Model:
    return lambda now: now.seen_as(got)


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
            start = State(None, None, datetime.min.replace(tzinfo=UTC), LinkState.UP, told=False)
            try:
                find_order(history, start)
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
            self._add(nic, note, called, model, looks=True)
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
            self._add(nic, f"{what}: not waited for", called, model(None), answered=False)
        except LinkmgrError as error:
            self._failed(nic, what, called, error)
        else:
            self._answered(nic, what, called, got, model(got))

    async def _look(self, links: Client, nic: str, who: str) -> None:
        called = time.monotonic()
        got = await links.nic(nic)
        what = f"{who} look: {State.of(got)}"
        self._add(nic, what, called, after_look(got), got=got, looks=True)

    def _answered(self, nic: str, what: str, called: float, got: Outcome, model: Model) -> None:
        what += f": changed={got.changed}, {State.of(got.nic)}, link {got.nic.link}"
        right = link_is_right(got.nic)
        after = model if right else _cannot_be
        self._add(nic, what, called, after, got=got.nic, looks=not got.changed)

    def _failed(self, nic: str, what: str, called: float, error: LinkmgrError) -> None:
        self._add(nic, f"{what}: {error}", called, _cannot_be)

    def _add(
        self, nic: str, what: str, called: float, model: Model,
        *, got: Nic | None = None, looks: bool = False, answered: bool = True,
    ) -> None:  # fmt: skip
        returned = time.monotonic() if answered else NEVER
        too_late = (lambda _: False) if got is None else (lambda now: now.is_past(got))
        self.histories[nic].append(Call(what, called, returned, model, too_late, looks))


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


async def faults(links: LinkApi) -> list[Finding]:
    """What is wrong, as far as it can be right: without a driver a virtio NIC asks for all frames,
    which a macvtap does not give.
    """
    return [finding for finding in await links.check() if finding.code != "refused"]


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
        async with asyncio.timeout(60):  # no deadlock
            await load.run(clients=200, verbs=6)
        load.check()
        assert load.given_up, "no client went away"
        assert load.refused, "no two NICs wanted the shared port at once"
        async with Client(host.socket) as links:
            assert await faults(links) == []
            holders = [c for c in await links.connections() if str(c.port) == SHARED]
            assert len(holders) <= 1
        assert "Traceback" not in host.said()
        assert "repaired" not in host.said(), "a change was taken for drift"
        await cleared(host, nics)


async def test_a_service_without_the_lock_of_a_nic_is_caught(tmp_path: Path, lab: Lab) -> None:
    async with make_host(tmp_path, command("no-lock")) as host:
        nics = await prepared(host, lab, guests=1, nics=2)
        load = Load(host.socket, nics)
        async with asyncio.timeout(60):
            await load.run(clients=12, verbs=3)
        with pytest.raises(NotLinearizable, match=r"web1/net[01]: after "):
            load.check()
