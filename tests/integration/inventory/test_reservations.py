"""A binding that is held for a guest on its way here, on a real host: taken, given up, lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkmgr.errors import LinkMissing, NetworkInUse
from linkmgr.model import LinkState, NicRef, NicState
from linkmgr.testing.process import until
from tests.integration.lab import mac_of, make_lab

NIC = NicRef("web1", "net0")
MAC = mac_of(1, 0)


async def test_a_binding_is_taken_by_a_plug_and_given_up_by_an_unplug_a_failure_and_the_end(
    tmp_path: Path,
) -> None:
    bridge = Path("/sys/class/net/br-held")
    async with make_lab(tmp_path) as lab:
        links, bindings = lab.links, lab.links.bindings
        await links.create_network("blue", "bridge", bridge="br-held", create=True)
        await bindings.bind(NIC, "blue", mac=MAC)
        assert bridge.exists()
        with pytest.raises(NetworkInUse, match="web1/net0"):
            await links.delete_network("blue")

        guest = await lab.guest(boot=False)
        plugged = await links.plug(NIC, "blue")
        assert NIC not in bindings
        # Announced, not flapped: the guest came with its carrier.
        assert plugged.timings["notify"] < 100
        assert plugged.nic.link is LinkState.UP
        with pytest.raises(NetworkInUse, match="web1/net0"):
            await links.delete_network("blue")
        await links.unplug(NIC)
        assert not bridge.exists()
        await links.remove_vm("web1")

        # Another verb than the plug: the binding is not wanted any more.
        await bindings.bind(NIC, "blue", mac=MAC)
        await links.add_vm("web1", guest.qmp_path)
        assert not (await links.unplug(NIC)).changed
        assert (NIC in bindings, bridge.exists()) == (False, False)
        await links.remove_vm("web1")

        # The host changes after the binding was made.
        await lab.network("red")
        await bindings.bind(NIC, "red", mac=MAC)
        await links.add_vm("web1", guest.qmp_path)
        await lab.sh("ip link del br-red")
        with pytest.raises(LinkMissing):
            await links.plug(NIC, "red")
        assert NIC not in bindings
        assert (await links.nic(NIC)).state is NicState.UNPLUGGED
        assert await links.delete_network("red")
        await links.remove_vm("web1")

        # The guest's QEMU ends before it runs.
        await bindings.bind(NIC, "blue", mac=MAC)
        await links.add_vm("web1", guest.qmp_path)
        guest.kill()
        await until(lambda: links.forget_ended("web1"), timeout=10, what="its end is seen")
        assert (NIC in bindings, bridge.exists()) == (False, False)

        await bindings.bind(NIC, "blue", mac=MAC)
        assert bridge.exists()
    assert not bridge.exists()
