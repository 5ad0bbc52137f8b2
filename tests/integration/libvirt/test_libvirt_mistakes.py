"""What is wrong in a domain's XML is told clearly, and the guest runs on.

More of it: a wrong alias, metadata that cannot be read and networks that do not exist yet are in
test_domain_cables.py, a QEMU that dials with another guest's uuid is in test_listener.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from linkmgr.cli.exit_codes import Exit
from linkmgr.testing.process import until
from tests.integration.domain_lab import domain_lab
from tests.integration.libvirtd import DomainGuest, tiny_domain

NIC = "<interface type='user'><mac address='52:54:00:00:05:00'/><model type='virtio'/></interface>"
NICS = ("ua-net0", "ua-net1")


@pytest.mark.timeout(120)
async def test_of_two_nics_with_one_address_one_is_plugged_and_the_other_when_that_has_left(
    tmp_path: Path,
) -> None:
    async with domain_lab(tmp_path) as lab:
        xml = tiny_domain(lab.libvirtd, "web1", [NIC, NIC], cmdline="lm.ip.eth0=10.9.0.2/24")
        await lab.libvirtd.define(xml)
        await lab.prepare("web1")
        for nic in NICS:
            await lab.linkmgr("plug", f"web1/{nic}", "green", "--config")
        await lab.libvirtd.virsh("start", "web1")

        async def found() -> list[str]:
            return [each.code for each in await lab.links.check() if each.code != "refused"]

        await until(found, timeout=10, what="it is told")
        assert await found() == ["mac-in-use"]
        on = [alias for alias, nic in (await lab.nics("web1")).items() if nic.connection]
        assert len(on) == 1
        (other,) = set(NICS) - set(on)
        told = next(each for each in await lab.links.check() if each.code == "mac-in-use")
        assert told.subject == f"web1/{other}"
        assert "52:54:00:00:05:00" in told.what
        assert f"web1/{on[0]}" in told.what
        status = (await lab.linkmgr("status")).output
        assert told.what in status
        async with DomainGuest(lab.libvirtd, "web1") as guest:
            await guest.connect()
            await guest.wait_carrier(f"eth{on[0][-1]}", up=True)
            assert not await guest.carrier(f"eth{other[-1]}")
            await lab.linkmgr("unplug", f"web1/{on[0]}")
            await lab.agrees("web1", {other: "green"})
            # A bridge; and what a person is told.
            await lab.linkmgr("plug", f"web1/{other}", "blue")
            refused = await lab.linkmgr("plug", f"web1/{on[0]}", "blue", check=False)
            assert refused.status == Exit.CONFLICT
            assert f"web1/{other}" in refused.output
            await lab.agrees("web1", {other: "blue"})
        await lab.libvirtd.virsh("destroy", "web1")
        await lab.nothing_left("web1")
