"""A host of libvirt guests: a libvirtd, the service, libvirt's hook, and three networks.

`DomainLab.agrees` compares everybody's idea of the cables: linkmgr's, its journal's, the kernel's,
QEMU's, and what the guest itself can reach.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.served import ServiceProcess
from linkmgr import Client, NicState
from linkmgr.hypervisors.qemu.qmp.info_network import parse_info_network
from linkmgr.model import Connection, Nic, OwnerTag
from linkmgr.testing import Station
from linkmgr.testing.process import Result, execute, until
from tests.hook_copy import write_hook
from tests.integration.dying_service import command, reached
from tests.integration.lab import SUBNETS, bridge_of, peer_of
from tests.integration.libvirtd import Libvirtd, private_libvirtd

PROGRAM = str(Path(sys.executable).with_name("linkmgr"))
#: Seconds that a guest's boot may take: 2 s alone, and far more beside other tests.
BOOT_TIMEOUT_S = 60.0
NETWORKS = {"blue": "bridge", "red": "bridge", "green": "direct"}


@dataclass
class DomainLab:
    """See the module.

    :param note: for the service that dies; see `dying_service`.
    :param own: the host's devices without any cable.
    """

    libvirtd: Libvirtd
    served: ServiceProcess
    links: Client
    note: Path
    own: frozenset[str]

    @property
    def virsh(self) -> list[str]:
        """virsh's words for this libvirtd."""
        return ["virsh", "-q", "-c", self.libvirtd.uri]

    async def linkmgr(self, *words: str, check: bool = True) -> Result:
        """Run the command as a person does."""
        argv = [PROGRAM, "--socket", str(self.served.socket), *words]
        return await execute(argv, timeout=60, check=check)

    # ------------------------------------------------------------------ what is

    async def nics(self, vm: str) -> dict[str, Nic]:
        """What linkmgr says of a guest's NICs, by alias."""
        return {nic.ref.alias: nic for nic in await self.links.nics() if nic.ref.vm == vm}

    async def settled(self, vm: str, wanted: Mapping[str, str]) -> dict[str, Nic]:
        """Wait until the NICs are plugged into these networks and show the guest what they are to.

        :raise TimeoutError: they do not.
        """
        nics: dict[str, Nic] = {}

        async def asked() -> bool:
            nics.clear()
            nics.update(await self.nics(vm))
            on = {alias: nic.connection.network for alias, nic in nics.items() if nic.connection}
            plugged = [nic for nic in nics.values() if nic.connection]
            return on == wanted and all(nic.link == nic.wanted_link for nic in plugged)

        try:
            await until(asked, timeout=15, what=f"{vm} on {wanted}", interval=0.05)
        except TimeoutError as error:
            error.add_note(f"they are: {nics}\nthe service said: {self.served.said()[-3000:]}")
            raise
        return nics

    def devices(self) -> dict[str, str]:
        """The host's devices that it did not have before, and their tags."""
        found = {}
        for path in Path("/sys/class/net").iterdir():
            if path.name not in self.own:
                with suppress(OSError):  # it has just gone (ENODEV too), or has another name now
                    found[path.name] = (path / "ifalias").read_text().strip()
        return found

    def kept(self, vm: str) -> list[str]:
        """Files of the state directory that still tell of a guest."""
        files = [path for path in self.served.state.rglob("*") if path.is_file()]
        return [path.name for path in files if vm in path.name or f'"{vm}"' in path.read_text()]

    async def agrees(self, vm: str, wanted: Mapping[str, str]) -> dict[str, Nic]:
        """Assert that linkmgr, its journal, the kernel and QEMU know of these cables and no other.

        :return: what linkmgr says, by alias.
        """
        await self.settled(vm, wanted)
        nics: dict[str, Nic] = {}

        async def named() -> bool:  # a moment after it was plugged, when libvirt's tap has gone
            nics.update(await self.nics(vm))
            return self.devices() == {
                each.device: str(OwnerTag(f"{vm}/{alias}", each.attachment))
                for alias, each in _connections(nics).items()
            }

        try:
            await until(named, timeout=5, what="the host's devices are the cables")
        except TimeoutError as error:
            error.add_note(f"{self.devices()}, {nics}")
            raise
        made = _connections(nics)
        assert {nic.state for nic in nics.values()} <= {NicState.PLUGGED, NicState.UNPLUGGED}
        journal = json.loads((self.served.state / "vms" / f"{vm}.json").read_text())
        recorded = {alias: nic["cable"] for alias, nic in journal["nics"].items() if nic["cable"]}
        assert {alias: each["attachment"] for alias, each in recorded.items()} == {
            alias: each.attachment for alias, each in made.items()
        }
        assert not any(nic["intent"] for nic in journal["nics"].values())
        info = parse_info_network(await self.libvirtd.hmp(vm, "info network"))
        for alias in nics:
            hub = info.hub_of(alias)
            assert hub is not None, f"{alias} is on no hub: {info}"
            assert len(info.hubs[hub[0]].backends) == (alias in wanted), info.hubs
            assert len(info.hubs[hub[0]].free) == 1, "its sink"
        taps = [each for each in info.netdevs.values() if each.type == "tap"]
        assert len(taps) == len(wanted), taps
        await self.finds_nothing()
        return nics

    async def finds_nothing(self) -> None:
        """Wait until `check` finds nothing.

        :raise TimeoutError: it does. A NIC without a driver yet asks for all frames, so a macvtap
            is not what it asks for while its guest boots.
        """

        async def asked() -> str:
            findings = await self.links.check()
            return "nothing" if not findings else ""

        try:
            await until(asked, timeout=BOOT_TIMEOUT_S, what="check finds nothing", interval=0.1)
        except TimeoutError as error:
            error.add_note(f"it finds {await self.links.check()}")
            raise

    async def reaches(self, guest: Station, expected: set[str]) -> None:
        """Assert that a guest's frames reach the peers of these networks and of no other."""
        pings = " ".join(
            f"(ping -c 3 -i 0.1 -W 1 10.{SUBNETS[name]}.0.1 >/dev/null && echo {name}) &"
            for name in NETWORKS
        )

        async def asked() -> set[str]:
            return set((await guest.run(f"{pings} wait")).output.split())

        seen = await asked()
        if seen < expected:  # the host was busy: no answer is no proof, an answer is
            seen |= await asked()
        assert seen == expected

    async def nothing_left(self, vm: str) -> None:
        """Wait until nothing of a guest is left on the host and in the state directory.

        :raise TimeoutError: something is.
        """

        async def gone() -> bool:
            return not self.kept(vm) and not self.devices()

        try:
            await until(gone, timeout=10, what=f"the end of all that {vm} had", interval=0.05)
        except TimeoutError as error:
            error.add_note(f"left: {self.kept(vm)}, {self.devices()}\n{self.served.said()[-3000:]}")
            raise
        assert all(nic.ref.vm != vm for nic in await self.links.nics())
        assert await self.links.check() == []

    # ------------------------------------------------------------------ what is done

    async def prepare(self, domain: str) -> None:
        """``linkmgr prepare``."""
        argv = [PROGRAM, "prepare", "--connect", self.libvirtd.uri, "--define", domain]
        await execute(argv, timeout=60)

    async def hold_at(self, where: str) -> None:
        """Have the service wait there. It is another one, until it is started again."""
        await self._arm(f"hold {where}")

    async def held(self) -> None:
        """Wait until it waits."""
        await until(lambda: _exists(reached(self.note)), timeout=20, what="the service to wait")

    def go_on(self) -> None:
        """Let it go on."""
        self.note.unlink()

    async def die_at(self, where: str) -> None:
        """Have the service die there. It is one that can, from now on until `revive`."""
        await self._arm(f"die {where}")

    async def _arm(self, what: str) -> None:
        reached(self.note).unlink(missing_ok=True)
        await self.served.stop()
        await self.served.start(before=command(self.note))
        self.note.write_text(what)

    async def revive(self) -> None:
        """Wait until the service has died, and start it again at once, as systemd does."""
        await until(lambda: _exists(reached(self.note)), timeout=20, what="the service to die")
        await self.served.stop()
        await self.served.start()


def _connections(nics: Mapping[str, Nic]) -> dict[str, Connection]:
    return {alias: nic.connection for alias, nic in nics.items() if nic.connection}


async def _exists(path: Path) -> bool:
    return path.exists()


@asynccontextmanager
async def domain_lab(
    folder: Path, networks: Mapping[str, str] = NETWORKS
) -> AsyncIterator[DomainLab]:
    """Build it; the networks are described to the service, each with a peer."""
    async with AsyncExitStack() as stack:
        libvirtd = await stack.enter_async_context(private_libvirtd())
        socket = "/run/linkmgr/lm.sock"
        write_hook(
            libvirtd.root / "etc/hooks/qemu.d/50-linkmgr",
            socket=socket, config="/run/linkmgr/none.toml", program="/bin/sh",
        )  # fmt: skip
        await libvirtd.restart()  # it looks for hooks when it starts
        for name, driver in networks.items():
            network = bridge_of(name) if driver == "bridge" else peer_of(name)
            await stack.enter_async_context(network)
        config = (
            f'[libvirt]\nuri = "{libvirtd.uri}"\nrun_dir = "{libvirtd.run}/libvirt/qemu"\n'
            f'config_dir = "{libvirtd.root}/etc/qemu"\n'
        )
        own = frozenset(path.name for path in Path("/sys/class/net").iterdir())
        note = folder / "note"
        served = ServiceProcess(folder, config=config)
        served.socket = libvirtd.run / "linkmgr" / Path(socket).name
        await stack.enter_async_context(served)
        links = await stack.enter_async_context(served.client())
        for name, driver in networks.items():
            option = {"bridge": f"br-{name}"} if driver == "bridge" else {"parent": f"v-{name}"}
            await links.create_network(name, driver, **option)
        yield DomainLab(libvirtd, served, links, note, own)
        assert "Traceback" not in served.said(), served.said()
