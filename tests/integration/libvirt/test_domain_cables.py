"""Cables that a domain's own XML asks for: a real libvirtd, the real service, virsh and linkmgr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.served import ServiceProcess
from linkmgr import Client, NicState
from linkmgr.libvirt.xml.desired_cables import DesiredCable, desired_cables_of_xml
from linkmgr.testing.guest import GuestTimeout
from linkmgr.testing.process import Result, execute, until
from tests.hook_copy import write_hook
from tests.integration.lab import bridge_of
from tests.integration.libvirtd import DomainGuest, Libvirtd, private_libvirtd, tiny_domain

PROGRAM = str(Path(sys.executable).with_name("linkmgr"))
NET0, NET1 = "web1/ua-net0", "web1/ua-net1"
MAC = "52:54:00:00:05:0{}"


@dataclass
class Cables:
    """A libvirtd, a service, and two bridges with a machine each."""

    libvirtd: Libvirtd
    served: ServiceProcess
    links: Client

    async def linkmgr(self, *words: str, check: bool = True) -> Result:
        """Run the command as a person does."""
        argv = [PROGRAM, "--socket", str(self.served.socket), *words]
        return await execute(argv, timeout=60, check=check)

    async def metadata(self, cables: str, *where: str) -> None:
        """``virsh metadata``."""
        await self.libvirtd.virsh(
            "metadata", "web1", "urn:linkmgr:cables", "--key", "lm", *where, "--set", cables
        )

    async def asked(self, *, live: bool) -> DesiredCable:
        """What the domain's XML asks for its first NIC."""
        words = () if live else ("--inactive",)
        return desired_cables_of_xml(await self.libvirtd.virsh("dumpxml", *words, "web1")).get(
            "ua-net0"
        )

    async def on(self, nic: str) -> str | None:
        """What a NIC is plugged into; ``None`` for nothing, or for a NIC that is not known."""
        seen = next((each for each in await self.links.nics() if str(each.ref) == nic), None)
        return str(seen.connection.port) if seen and seen.connection else None

    async def comes(self, nic: str, port: str | None) -> None:
        """Wait until a NIC is plugged into that, and the guest has been told."""

        async def asked() -> bool:
            # Its QEMU may not have dialled yet: then the NIC is not known.
            seen = next((each for each in await self.links.nics() if str(each.ref) == nic), None)
            if seen is None or (str(seen.connection.port) if seen.connection else None) != port:
                return False
            return port is None or seen.link == seen.wanted_link

        await until(asked, timeout=10, what=f"{nic} on {port}", interval=0.05)

    async def finds(self, *codes: str) -> list[str]:
        """Wait until `check` finds these, and nothing else; what it says."""

        async def asked() -> list[str] | None:
            found = await self.links.check()
            same = sorted(each.code for each in found) == sorted(codes)
            return [f"{each.subject}: {each.what}" for each in found] or [""] if same else None

        return await until(asked, timeout=10, what=f"check to find {codes}", interval=0.05) or []


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Cables]:
    async with AsyncExitStack() as stack:
        libvirtd = await stack.enter_async_context(private_libvirtd())
        for name in ("blue", "green"):
            await stack.enter_async_context(bridge_of(name))
        served = ServiceProcess(
            tmp_path,
            config=f"""
            [libvirt]
            uri = "{libvirtd.uri}"
            run_dir = "{libvirtd.run}/libvirt/qemu"
            config_dir = "{libvirtd.root}/etc/qemu"
            [networks.blue]
            driver = "bridge"
            options = {{ bridge = "br-blue" }}
            """,
        )
        served.socket = libvirtd.run / "linkmgr/lm.sock"
        await stack.enter_async_context(served)
        links = await stack.enter_async_context(served.client())
        yield Cables(libvirtd, served, links)
        assert "Traceback" not in served.said(), served.said()


async def define(lab: Cables, nics: int = 2, *, devices: str = "") -> None:
    words = "lm.ip.eth0=10.1.0.2/24 lm.ip.eth0=10.2.0.2/24"
    made = [
        f"<interface type='user'><mac address='{MAC.format(n)}'/><model type='virtio'/></interface>"
        for n in range(nics)
    ]
    xml = tiny_domain(lab.libvirtd, "web1", made, cmdline=words, devices=devices)
    await lab.libvirtd.define(xml)
    argv = [PROGRAM, "prepare", "--connect", lab.libvirtd.uri, "--define", "web1"]
    await execute(argv, timeout=60)


async def reconnect(guest: DomainGuest) -> None:
    """Connect to a guest that has not booted since: its shell may still hold the old connection."""
    for _ in range(4):
        with contextlib.suppress(GuestTimeout):
            await guest.connect(timeout=6)
            return
    await guest.connect(timeout=20)


def kept(lab: Cables) -> list[str]:
    """What the state directory still says of guests."""
    files = [path for path in lab.served.state.rglob("*") if path.is_file()]
    return [path.name for path in files if "web1" in path.name or "web1" in path.read_text()]


def devices() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


async def nothing_left(lab: Cables, before: set[str]) -> None:
    async def gone() -> bool:
        return not kept(lab) and devices() == before

    try:
        await until(gone, timeout=5, what="the end of all that it had")
    except TimeoutError as error:
        error.add_note(f"left: {kept(lab)}, {devices() ^ before}")
        raise


@pytest.mark.timeout(150)
@pytest.mark.newer_debian
async def test_a_domain_boots_on_the_cables_that_its_xml_asks_for_and_follows_what_is_edited(
    lab: Cables,
) -> None:
    before = devices()
    await define(lab)
    listed = json.loads((await lab.linkmgr("nics", "--json")).output)["domains"]
    assert [(each["name"], each["state"], each["prepared"]) for each in listed] == [
        ("web1", "shut off", True)
    ]

    # Asked for while it is off; the second one's network is not there yet.
    said = await lab.linkmgr("plug", NET0, "blue", "--persistent")
    assert said.output == f"{NET0}  from its next start on it is plugged into blue, link up\n"
    said = await lab.linkmgr("plug", NET1, "green", "--config")
    assert "network green does not exist yet" in said.output
    refused = await lab.linkmgr("plug", NET0, "blue", check=False)
    assert refused.status == 3, "there is nothing live"

    await lab.libvirtd.virsh("start", "web1")
    async with DomainGuest(lab.libvirtd, "web1") as guest:
        await lab.comes(NET0, "blue")
        (what,) = await lab.finds("unknown-network")
        assert what == f"{NET1}: there is no network green"
        await guest.connect()
        assert await guest.carrier("eth0")
        assert not await guest.carrier("eth1")
        assert (await guest.ping("10.1.0.1")).received
        assert "unknown-network" not in (await lab.linkmgr("status")).output

        # A network that appears later.
        await lab.links.create_network("green", "bridge", bridge="br-green")
        await lab.comes(NET1, "green")
        await lab.finds()

        # virsh edits what runs: only the NIC whose cable changed is touched.
        since = (await lab.links.nic(NET1)).since
        both = (
            "<cables><cable nic='ua-net0' network='{}'/>"
            "<cable nic='ua-net1' network='green'/></cables>"
        )
        await lab.metadata(both.format("green"), "--live")
        await lab.comes(NET0, "green")
        assert (await guest.ping("10.2.0.1")).received
        assert (await lab.links.nic(NET1)).since == since
        assert await lab.asked(live=False) == DesiredCable("ua-net0", "blue")

        # virsh edits what is stored: nothing until the next start.
        changes = await guest.carrier_changes("eth0")
        await lab.metadata(both.format("blue").replace("green", "blue"), "--config")
        # What nobody can read: the guest stays as it is.
        await lab.metadata("<cables><cable nic='ua-net0' netwrok='blue'/></cables>", "--live")
        (what,) = await lab.finds("bad-metadata")
        assert what.startswith("web1/ua-net0: the cables in <metadata> cannot be read")
        assert await lab.on(NET0) == "green"
        assert await guest.carrier_changes("eth0") == changes
        assert "did you mean network?" in (await lab.linkmgr("status")).output
        await lab.metadata(both.format("green"), "--live")
        await lab.finds()

        # An inline network, and back; it is there only meanwhile.
        raw = "<cable nic='ua-net0' driver='bridge'><option name='bridge' value='br-blue'/></cable>"
        await lab.metadata(
            f"<cables>{raw}<cable nic='ua-net1' network='green'/></cables>", "--live"
        )

        async def on_inline() -> bool:
            return str(await lab.on(NET0)).startswith("raw-bridge-")

        await until(on_inline, timeout=10, what="the inline network")
        assert (await guest.ping("10.1.0.1")).received
        await lab.linkmgr("plug", NET0, "green")
        assert (await lab.asked(live=True)).network == "green"

        async def tidy() -> bool:
            return {each.name for each in await lab.links.networks()} == {"blue", "green"}

        await until(tidy, timeout=5, what="the inline network's end")

        # An operator, while libvirt is away; and then the service is started anew.
        await lab.libvirtd.stop()
        noted = await lab.linkmgr("plug", NET0, "blue", "--persistent")
        assert "the domain's live XML still asks for what it did before" in noted.output
        assert "the next start is as before" in noted.output
        await lab.served.stop()
        await lab.libvirtd.start()
        await lab.served.start()
        await lab.finds()
        assert await lab.on(NET0) == "blue"
        assert (await guest.ping("10.1.0.1")).received
        assert (await lab.asked(live=True)).network == "green"

        pid = guest.pid
    await lab.libvirtd.virsh("destroy", "web1")
    await nothing_left(lab, before)

    # The next start is what was stored.
    await lab.libvirtd.virsh("start", "web1")
    async with DomainGuest(lab.libvirtd, "web1") as guest:
        await lab.comes(NET0, "blue")
        await lab.comes(NET1, "blue")
        assert guest.pid != pid
        await lab.linkmgr("unplug", NET1, "--persistent")
        await lab.linkmgr("link", NET0, "down", "--persistent")
        assert await lab.asked(live=False) == await lab.asked(live=True)
        await guest.connect()
        assert not await guest.carrier("eth0")

        # Saved and started again it is another process: cables as its own XML says.
        await lab.libvirtd.virsh("managedsave", "web1", timeout=60)
        await nothing_left(lab, before)
        await lab.libvirtd.virsh("start", "web1", timeout=60)
        await lab.comes(NET0, "blue")
        assert (await lab.links.nic(NET1)).state is NicState.UNPLUGGED
        await reconnect(guest)
        assert not await guest.carrier("eth0")
        await lab.linkmgr("link", NET0, "up")
        await guest.wait_carrier("eth0", up=True)
        assert (await guest.ping("10.1.0.1")).received
    await lab.libvirtd.virsh("destroy", "web1")
    await nothing_left(lab, before)


async def test_a_wrong_alias_in_the_override_is_told_and_other_guests_are_listed(
    lab: Cables,
) -> None:
    await define(lab, nics=1)
    xml = await lab.libvirtd.virsh("dumpxml", "--inactive", "web1")
    wrong = xml.replace("<qemu:device alias='ua-net0'>", "<qemu:device alias='ua-net9'>")
    assert wrong != xml
    await lab.libvirtd.define(wrong)
    bare = "<interface type='bridge'><source bridge='br-green'/></interface>"
    await lab.libvirtd.define(tiny_domain(lab.libvirtd, "web2", [bare]))
    await lab.linkmgr("plug", NET0, "blue", "--config")
    await lab.libvirtd.virsh("start", "web1")
    (what,) = await lab.finds("not-on-hub")
    assert what.startswith(f"{NET0}: the NIC is not on its hub")
    assert "the guest is isolated" in what
    assert await lab.on(NET0) is None
    assert await lab.libvirtd.virsh("domstate", "web1") == "running"
    status = (await lab.linkmgr("status")).output
    assert "linkmgr prepare web1 --define" in status
    rows: list[dict[str, Any]] = json.loads((await lab.linkmgr("nics", "--json")).output)["domains"]
    assert [(each["name"], each["transport"], each["command"]) for each in rows] == [
        ("web1", "inbound", None), ("web2", None, "linkmgr prepare web2 --define"),
    ]  # fmt: skip
    assert rows[1]["nics"][0]["network"] == "bridge br-green"
    assert "linkmgr prepare web2 --define" in (await lab.linkmgr("nics")).output
    await lab.libvirtd.virsh("destroy", "web1")


async def test_who_is_sent_away_is_told_what_the_domain_lacks(lab: Cables, tmp_path: Path) -> None:
    async def refused(status: int, *words: str) -> str:
        said = await lab.linkmgr(*words, check=False)
        assert said.status == status, said.output
        return said.output

    ports = [f"<controller type='pci' index='{n}' model='pcie-root-port'/>" for n in range(1, 9)]
    await define(
        lab, nics=1, devices="<controller type='pci' index='0' model='pcie-root'/>" + "".join(ports)
    )  # some stay free
    assert "domain web1 is shut off. To do: start it" in await refused(3, "plug", NET0, "blue")
    await lab.linkmgr("plug", NET0, "blue", "--config")
    assert "at its start: blue" in (await lab.linkmgr("nics")).output

    # One that runs, and is prepared only then.
    bare = (
        f"<interface type='user'><mac address='{MAC.format(9)}'/><model type='virtio'/></interface>"
    )
    web2 = tiny_domain(lab.libvirtd, "web2", [bare])
    await lab.libvirtd.define(web2)
    await lab.libvirtd.virsh("start", "web2")
    prepare = [PROGRAM, "prepare", "--connect", lab.libvirtd.uri]
    assert "linkmgr prepare web2 --define" in await refused(3, "plug", "web2/ua-net0", "blue")
    await execute([*prepare, "--define", "web2"], timeout=60)
    assert "shut it down and start it" in await refused(3, "plug", "web2/ua-net0", "blue")
    assert "shut web2 down and start it" in (await lab.linkmgr("nics")).output
    await lab.libvirtd.virsh("destroy", "web2")

    # One QEMU is one VM.
    await lab.libvirtd.virsh("start", "web1")
    await lab.comes(NET0, "blue")
    assert "is VM web1, whose NICs linkmgr has" in await refused(
        4, "vm", "add", "w1", "libvirt:web1"
    )
    assert (await lab.linkmgr("check")).status == 0

    # A NIC that is hot-plugged has no hub.
    hot = bare.replace(MAC.format(9), MAC.format(8)).replace("/></i", "/><alias name='ua-hot'/></i")
    (tmp_path / "hot.xml").write_text(hot)
    await lab.libvirtd.virsh("attach-device", "web1", str(tmp_path / "hot.xml"))
    assert "the NIC is wired to hostua-hot" in await refused(5, "plug", "web1/ua-hot", "blue")
    assert await lab.on(NET0) == "blue"

    # One that is transient has no next start.
    (tmp_path / "web3.xml").write_text(tiny_domain(lab.libvirtd, "web3", [bare]))
    made = await execute([*prepare, "--xml", str(tmp_path / "web3.xml")], timeout=60)
    (tmp_path / "made.xml").write_text(made.output[made.output.index("<domain") :])
    await lab.libvirtd.virsh("create", str(tmp_path / "made.xml"))
    await lab.comes("web3/ua-net0", None)
    said = await refused(4, "plug", "web3/ua-net0", "blue", "--config")
    assert "web3 is transient: it has no next start" in said
    said = (await lab.linkmgr("plug", "web3/ua-net0", "blue", "--persistent")).output
    assert "it holds until the guest ends: web3 is transient" in said
    assert await lab.on("web3/ua-net0") == "blue"

    await lab.libvirtd.stop()
    said = await refused(13, "plug", NET0, "blue", "--config")
    assert (said.count("To do: "), said.count(lab.libvirtd.uri)) == (1, 1)
    said = (await lab.linkmgr("nics")).output
    assert "libvirt's other guests are not listed" in said
    assert NET0 in said
    await lab.libvirtd.start()
    for name in ("web1", "web3"):
        await lab.libvirtd.virsh("destroy", name)


async def test_with_the_hook_a_start_is_done_when_the_cables_are_in_and_libvirt_is_never_asked(
    lab: Cables,
) -> None:
    before = devices()
    await define(lab)
    await lab.linkmgr("plug", NET0, "blue", "--config")
    await lab.served.stop()
    write_hook(
        lab.libvirtd.root / "etc/hooks/qemu.d/50-linkmgr",
        socket="/run/linkmgr/lm.sock", config="/run/linkmgr/none.toml", program="/bin/sh",
    )  # fmt: skip
    await lab.libvirtd.restart()
    config = lab.served._config.read_text()
    lab.served._config.write_text(config.replace(f'uri = "{lab.libvirtd.uri}"', 'uri = ""'))
    await lab.served.start()
    for _ in range(3):
        await lab.libvirtd.virsh("start", "web1")
        assert await lab.on(NET0) == "blue", "not a moment later"
        await lab.libvirtd.virsh("destroy", "web1")
        await nothing_left(lab, before)
    lab.served._config.write_text(config)
    await lab.served.stop()
    await lab.served.start()
    await lab.libvirtd.virsh("start", "web1")
    assert await lab.on(NET0) == "blue"
    assert (await lab.linkmgr("plug", NET1, "blue", "--persistent")).status == 0
    await lab.libvirtd.restart()  # its hook runs at `reconnect`
    assert await lab.on(NET1) == "blue"
    await lab.finds()
    await lab.libvirtd.virsh("destroy", "web1")
    await nothing_left(lab, before)
