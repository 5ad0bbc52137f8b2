"""A domain whose author means harm, under a real libvirtd: it costs nobody else anything."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import pytest

from linkmgr.libvirt.connection import TIMEOUT
from linkmgr.testing.process import until
from tests.integration.domain_lab import DomainLab, domain_lab
from tests.integration.libvirtd import tiny_domain

NIC = "<interface type='user'><mac address='52:54:00:00:05:0{}'/><model type='virtio'/></interface>"
NET0 = "web1/ua-net0"
ELEMENTS = 330_000
SOON = 1.0  #: seconds for an answer on a busy machine


async def replugs(lab: DomainLab, number: int) -> list[float]:
    took = []
    for each in range(number):
        began = time.monotonic()
        await lab.links.plug(NET0, ("red", "blue")[each % 2], notify="silent")
        took.append(time.monotonic() - began)
    return took


@pytest.mark.timeout(180)
async def test_hundreds_of_thousands_of_elements_in_metadata_cost_the_others_nothing(
    tmp_path: Path,
) -> None:
    async with domain_lab(tmp_path, {"blue": "bridge", "red": "bridge"}) as lab:
        await lab.libvirtd.define(tiny_domain(lab.libvirtd, "web1", [NIC.format(1)]))
        await lab.prepare("web1")
        await lab.libvirtd.virsh("start", "web1")

        async def here() -> bool:
            return NET0 in [str(nic.ref) for nic in await lab.links.nics()]

        await until(here, timeout=15, what="web1 is known")
        await replugs(lab, 2)
        before = await replugs(lab, 10)
        large = f"<metadata><x:x xmlns:x='urn:x'>{'<x:a/> ' * ELEMENTS}</x:x></metadata>"
        xml = tiny_domain(lab.libvirtd, "web2", [NIC.format(2)])
        file = tmp_path / "web2.xml"
        file.write_text(xml.replace("</uuid>", f"</uuid>{large}"))
        await lab.libvirtd.virsh("define", str(file))
        listing = True

        async def ask() -> float:
            longest = 0.0
            while listing:
                began = time.monotonic()
                found = {each.name: each for each in await lab.links.domains()}
                longest = max(longest, time.monotonic() - began)
                assert len(found["web1"].nics) == 1
                assert (found["web2"].name, found["web2"].nics) == ("web2", ())
            return longest

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        try:
            await asyncio.sleep(0.5)
            began = time.monotonic()
            during = await replugs(lab, 10)
            starting = asyncio.create_task(lab.libvirtd.virsh("start", "web2"))
            during += await replugs(lab, 10)
            await starting
        finally:
            listing = False
            longest = max(await asyncio.gather(*asking))
        assert statistics.median(during) < 3 * max(statistics.median(before), 0.05)
        assert max(during) < SOON
        assert longest < TIMEOUT, "libvirt itself answers no list while a domain starts"
        assert time.monotonic() - began < 30

        async def told() -> str:
            return "; ".join(
                f"{each.code}: {each.what}"
                for each in await lab.links.check()
                if each.subject == "web2"
            )

        # Not before it has run for the time in which a QEMU dials.
        what = await until(told, timeout=15, what="check tells of web2")
        # libvirt indents it, and then it is too long for libvirt's own protocol.
        assert what.startswith(("bad-metadata: ", "libvirt-refused: "))
        for name in ("web1", "web2"):
            await lab.libvirtd.virsh("destroy", name)
