"""A linkmgr that starts again: what it knew, what it finds, and what has ended meanwhile."""

from __future__ import annotations

import json
import os
import signal

import pytest

from linkmgr import LinkManager, LinkState, NicState
from linkmgr.errors import MonitorUnreachable, NetworkInUse, PortInUse
from linkmgr.model import VmState
from linkmgr.testing.process import until
from tests.integration.crash import DIE
from tests.integration.failures_lab import NIC, no_frame_lost
from tests.integration.restart_lab import NAME, Bed, bed, unplugged

__all__ = ["bed", "unplugged"]  # fixtures

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_cable_that_works_is_not_touched_by_a_restart(bed: Bed) -> None:
    """No frame is lost while linkmgr is killed and starts again."""
    guest, peer = bed.lab.guests["web1"], bed.lab.peers["blue"]
    await bed.start_from("blue:one")
    await guest.wait_carrier("eth0", True)
    changes = await guest.run("cat /sys/class/net/eth0/carrier_changes", check=True)
    async with no_frame_lost(guest, peer):
        for _ in range(3):
            await bed.killed(DIE, "none")
        async with bed.links() as links:
            assert await links.check() == []
    assert await guest.run("cat /sys/class/net/eth0/carrier_changes") == changes
    await bed.start_from(None)


async def test_the_link_state_survives_a_restart(bed: Bed) -> None:
    async with bed.links() as links:
        await links.plug(NIC, "blue")
        await links.set_link(NIC, "down")
    async with bed.links() as links:
        nic = await links.nic(NIC)
        assert (nic.link, nic.wanted_link) == (LinkState.DOWN, LinkState.DOWN)
        await links.plug(NIC, "red")
        assert (await links.nic(NIC)).link is LinkState.DOWN
        await links.set_link(NIC, "up")
        await links.unplug(NIC)


async def test_a_port_stays_taken_over_a_restart(bed: Bed) -> None:
    await bed.start_from("blue:one")
    async with bed.links() as links:
        with pytest.raises(NetworkInUse, match=NIC):
            await links.delete_network("blue")
        with pytest.raises(PortInUse, match=NIC):
            await links.delete_port("blue", "one")
        await links.unplug(NIC)


async def test_a_stopped_qemu_is_waited_for(bed: Bed) -> None:
    """Its NIC is unknown and its cable stays; when QEMU answers again, all is as before."""
    guest = bed.lab.guests["web1"]
    await bed.start_from("blue:one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("linkmgr.manager.inventory.RECONNECT_TIMEOUT_S", 0.3)
        os.kill(guest.pid, signal.SIGSTOP)
        try:
            async with LinkManager(state=bed.state, timeout=0.2) as links:
                (vm,) = await links.vms()
                assert vm.state is VmState.UNKNOWN
                nic = await links.nic(NIC)
                assert nic.state is NicState.UNKNOWN
                assert nic.connection is not None
                assert nic.connection.network == "blue"
                assert [found.code for found in await links.check()] == ["monitor-unreachable"]
                for verb in (
                    links.plug(NIC, "red"),
                    links.unplug(NIC),
                    links.set_link(NIC, "down"),
                    links.add_vm("web1", guest.qmp_path),
                ):
                    with pytest.raises(MonitorUnreachable, match="has not answered since"):
                        await verb
                with pytest.raises(NetworkInUse):
                    await links.delete_network("blue")
                os.kill(guest.pid, signal.SIGCONT)

                async def back() -> bool:
                    return (await links.nic(NIC)).state is NicState.PLUGGED

                await until(back, timeout=10, what="the NIC is plugged again")
                bed.lab.links = links
                await bed.recovered()
                await links.unplug(NIC)
        finally:
            os.kill(guest.pid, signal.SIGCONT)


async def test_a_guest_that_ended_meanwhile_is_forgotten_and_leaves_nothing(bed: Bed) -> None:
    async with bed.links() as links:
        before = await bed.lab.sh("ip -br link")
        other = await bed.lab.guest("web2", boot=False)
        await links.plug("web2/net0", "green:two")
    await other.stop()
    async with bed.links() as links:
        assert [vm.name for vm in await links.vms()] == ["web1"]
        assert [path.name for path in (bed.state / "vms").iterdir()] == ["web1.json"]
        assert await bed.lab.sh("ip -br link") == before
        await links.plug(NIC, "green:two")
        await links.unplug(NIC)


async def test_an_absent_vm_can_be_forgotten_and_stays_on_its_cable(bed: Bed) -> None:
    guest = bed.lab.guests["web1"]
    await bed.start_from("blue:one")
    os.kill(guest.pid, signal.SIGSTOP)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("linkmgr.manager.inventory.RECONNECT_TIMEOUT_S", 0.3)
            async with LinkManager(state=bed.state, timeout=0.2) as links:
                assert await links.remove_vm("web1")
                assert await links.vms() == []
                assert await links.delete_port("blue", "one")
                await links.create_port("blue", "one")
    finally:
        os.kill(guest.pid, signal.SIGCONT)
    async with bed.links() as links:
        assert await links.vms() == []
        (nic,) = await links.add_vm("web1", guest.qmp_path)
        assert nic.state is NicState.FOREIGN
        await guest.wait_carrier("eth0", True)


async def test_a_foreign_cable_survives_restarts(bed: Bed) -> None:
    """Nothing that a NIC is on is ever cleared away, whoever has plugged it."""
    guest, peer = bed.lab.guests["web1"], bed.lab.peers["blue"]
    await bed.start_from("blue:one")
    await guest.wait_carrier("eth0", True)
    document = bed.state / "vms" / "web1.json"
    async with no_frame_lost(guest, peer):
        document.unlink()
        async with bed.links() as links:
            (nic,) = await links.add_vm("web1", guest.qmp_path)
            assert nic.state is NicState.FOREIGN
            await links.set_device_name(NIC, NAME)
        for _ in range(2):
            async with bed.links() as links:
                assert (await links.nic(NIC)).state is NicState.FOREIGN
                assert await links.check() == []
    async with bed.links() as links:
        await links.plug(NIC, "red")
        assert (await bed.recovered()).connection is not None


async def test_a_guest_that_starts_again_under_its_name_is_written_down(bed: Bed) -> None:
    async with bed.links() as links:
        one = await bed.lab.guest("web3", boot=False)
        await links.plug("web3/net0", "red")
        await one.stop()
        two = await bed.lab.guest("web3", boot=False)
        assert (await links.nic("web3/net0")).state is NicState.UNPLUGGED
        assert (bed.state / "vms" / "web3.json").exists()
        await links.plug("web3/net0", "red")
    async with bed.links() as links:
        nic = await links.nic("web3/net0")
        assert nic.state is NicState.PLUGGED
        assert await links.remove_vm("web3")
    await two.stop()


async def test_a_nic_that_cannot_be_brought_back_hurts_no_other(bed: Bed) -> None:
    """Its cable stays, it is foreign, `check` says why; what is on disk stays for a better day."""
    async with bed.links() as links:
        await bed.lab.guest("web4", boot=False, nics=2)
        await links.plug("web4/net0", "red")
        await links.plug("web4/net1", "blue:two")
    path = bed.state / "vms" / "web4.json"
    whole = path.read_text()
    document = json.loads(whole)
    document["nics"]["net0"]["cable"]["port"]["network"]["driver"] = "nosuch"
    path.write_text(json.dumps(document))
    async with bed.links() as links:
        states = {str(nic.ref): nic.state for nic in await links.nics()}
        assert states["web4/net0"] is NicState.FOREIGN
        assert states["web4/net1"] is NicState.PLUGGED
        (found,) = await links.check()
        assert (found.code, found.subject) == ("not-recovered", "web4/net0")
        assert "nosuch" in found.what
    path.write_text(whole)
    async with bed.links() as links:
        assert await links.check() == []
        assert (await links.nic("web4/net0")).state is NicState.PLUGGED
    path.write_text(json.dumps(document))
    async with bed.links() as links:
        assert [found.code for found in await links.check()] == ["not-recovered"]
        await links.plug("web4/net0", "blue:one")
        assert await links.check() == []  # on a cable that is known
        assert await links.remove_vm("web4")
    await bed.lab.guests["web4"].stop()
