"""What README.md and docs/libvirt.md say about libvirt, typed in as it stands there.

The README's three commands, and the document's walk from `virsh define` to the end.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from linkmgr.testing import NetnsPeer
from linkmgr.testing.process import execute, until
from linkmgr.testing.station import Job
from tests.integration.domain_lab import PROGRAM, DomainLab, domain_lab
from tests.integration.libvirtd import DomainGuest, tiny_domain
from tests.integration.readme import blocks_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.newer_debian]

ROOT = Path(__file__).parents[3]
HEADING = "## A walk"
GATEWAY = "10.0.0.1"
NIC = (
    "<interface type='bridge'><mac address='52:54:00:12:34:56'/><source bridge='br0'/>"
    "<model type='virtio'/></interface>"
)


def transcript(text: str) -> list[tuple[str, list[str]]]:
    """The commands of the section, each with what it is to print. ``...`` stands for anything."""
    section = text.partition(f"\n{HEADING}\n")[2].partition("\n## ")[0]
    found: list[tuple[str, list[str]]] = []
    for line in re.findall(r"^    (.*)$", section, re.MULTILINE):
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def like(pattern: str, line: str) -> bool:
    """Whether a line is what the document shows."""
    return bool(re.fullmatch(re.escape(pattern).replace(r"\.\.\.", ".*"), line))


@dataclass
class Walk:
    """The host, the guest, and the machines on both networks, which have the same address."""

    lab: DomainLab
    guest: DomainGuest
    peers: dict[str, NetnsPeer]
    pings: list[Job] = field(default_factory=list)

    async def type(self, command: str) -> list[str]:
        """Run a command, and say what it printed."""
        environment = [
            f"LIBVIRT_DEFAULT_URI={self.lab.libvirtd.uri}",
            f"LINKMGR_SOCKET={self.lab.served.socket}",
            f"PATH={Path(PROGRAM).parent}:{os.environ['PATH']}",
        ]
        argv = ["env", "-C", str(self.lab.note.parent), *environment, "sh", "-c", command]
        return (await execute(argv, timeout=60)).output.rstrip("\n").splitlines()

    async def booted(self) -> None:
        """It boots to its end without a cable."""
        await self.guest.connect()
        assert not await self.guest.carrier("eth0")
        assert not self.lab.devices()

    async def on_blue(self) -> None:
        await self.guest.wait_carrier("eth0", up=True)
        assert (await self.guest.ping(GATEWAY)).received
        self.pings.append(await self.guest.spawn(f"ping -i 0.1 {GATEWAY}"))

    async def on_green(self) -> None:
        """The ping that began on blue goes on, and it is green's machine that answers."""
        before = await self.echoes("green")

        async def answers() -> bool:
            return await self.echoes("green") > before + 10

        await until(answers, timeout=10, what="the ping goes on")
        blue = await self.echoes("blue")
        said = (await self.pings.pop().stop()).output
        answered = {int(number) for number in re.findall(r"seq=(\d+)", said)}
        lost = max(answered) + 1 - len(answered)
        assert lost < 30, f"3 s are more than the flap, and Linux's look at carriers: {said}"
        assert await self.echoes("blue") == blue

    async def echoes(self, network: str) -> int:
        """Echo requests that the machine on a network got; its bridge sends it other frames too."""
        said = (await self.peers[network].run("cat /proc/net/snmp", check=True)).output
        names, counts = (line.split() for line in said.splitlines() if line.startswith("Icmp:"))
        return int(counts[names.index("InEchos")])

    async def down(self) -> None:
        await self.guest.wait_carrier("eth0", up=False)

    async def up(self) -> None:
        await self.guest.wait_carrier("eth0", up=True)
        assert (await self.guest.ping(GATEWAY)).received
        await self.lab.agrees("web1", {"ua-net0": "green"})

    async def unplugged(self) -> None:
        await self.down()
        await self.lab.agrees("web1", {})

    async def off(self) -> None:
        """The test's guest does not hear its power button. What it would do is done here."""
        await self.guest.spawn("sleep 0.1; poweroff -f")
        shut_off = "shut off"

        async def asked() -> bool:
            return await self.lab.libvirtd.virsh("domstate", "web1") == shut_off

        await until(asked, timeout=20, what="the guest's end")
        await self.lab.nothing_left("web1")


#: What is so after a command.
THEN: dict[str, Callable[[Walk], Coroutine[Any, Any, None]]] = {
    "virsh start web1": Walk.booted,
    "linkmgr plug web1/ua-net0 blue": Walk.on_blue,
    "linkmgr plug web1/ua-net0 green": Walk.on_green,
    "virsh domif-setlink web1 52:54:00:12:34:56 down": Walk.down,
    "virsh domif-setlink web1 52:54:00:12:34:56 up": Walk.up,
    "linkmgr unplug web1/ua-net0": Walk.unplugged,
    "virsh shutdown web1": Walk.off,
}


@asynccontextmanager
async def make_place(folder: Path) -> AsyncIterator[Walk]:
    """A bridge br0 and a device eth1, each with a machine behind it; and the guest's XML."""
    async with (
        NetnsPeer("blue", "v-blue", addresses=[f"{GATEWAY}/24"]) as blue,
        NetnsPeer("green", "eth1", addresses=[f"{GATEWAY}/24"]) as green,
    ):
        await execute(["ip", "link", "add", "br0", "up", "type", "bridge"])
        try:
            await execute(["ip", "link", "set", "v-blue", "master", "br0"])
            async with domain_lab(folder, {}) as lab, DomainGuest(lab.libvirtd, "web1") as guest:
                words = "lm.ip.eth0=10.0.0.2/24"
                xml = tiny_domain(lab.libvirtd, "web1", [NIC], cmdline=words)
                (folder / "web1.xml").write_text(xml)
                yield Walk(lab, guest, {"blue": blue, "green": green})
        finally:
            await execute(["ip", "link", "del", "br0"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Walk]:
    async with make_place(tmp_path_factory.mktemp("walk")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def walk(place: Walk) -> AsyncIterator[Walk]:
    """A host that knows no domain and no network, before and after."""
    yield place
    await place.guest.stop()
    await place.type("virsh undefine web1")
    for network in await place.lab.links.networks():
        await place.lab.links.delete_network(network.name)


@pytest.mark.timeout(120)
async def test_every_command_of_the_walk_does_what_the_document_says(walk: Walk) -> None:
    commands = transcript((ROOT / "docs/libvirt.md").read_text())
    assert THEN.keys() <= {command for command, _ in commands}
    for command, shown in commands:
        printed = await walk.type(command)
        same = len(printed) == len(shown) and all(map(like, shown, printed))
        assert not shown or same, f"$ {command}\n" + "\n".join(printed)
        if command in THEN:
            await THEN[command](walk)


@pytest.mark.timeout(120)
async def test_the_readmes_commands_prepare_a_domain_whose_next_start_has_its_cable(
    walk: Walk,
) -> None:
    await walk.type("virsh define web1.xml")
    reload, create, prepare, start, plug = blocks_of("With libvirt")
    assert reload == "systemctl reload libvirtd"  # the lab's libvirtd has its hook from the start
    assert "bridge=virbr0" in create
    await walk.type(create.replace("virbr0", "br0"))
    listed = "\n".join(await walk.type("linkmgr nics"))
    assert prepare in listed, "it says with which command"
    await walk.type(prepare)
    await walk.type(start)
    await walk.booted()
    assert "plugged into blue" in "\n".join(await walk.type(plug))
    await walk.on_blue()
    await walk.off()
    await walk.type(start)
    await walk.guest.connect()
    await walk.on_blue()
    await walk.off()
