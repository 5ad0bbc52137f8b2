"""A domain whose author means harm, under a real libvirtd: it costs nobody else anything."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from pathlib import Path

import pytest

from linkmgr.libvirt.client.connection import CALL_TIMEOUT_S
from linkmgr.libvirt.prepare.rewrite import prepare
from linkmgr.testing.process import until
from tests.corpus.hostile import HURTS
from tests.integration.domain_lab import DomainLab, domain_lab
from tests.integration.libvirtd import tiny_domain
from tests.own_time import own_time

NIC = "<interface type='user'><mac address='52:54:00:00:05:0{}'/><model type='virtio'/></interface>"
NET0 = "web1/ua-net0"
ELEMENTS = 330_000
ANSWER_TIMEOUT_S = 1.0  #: seconds for an answer on a busy machine


#: What an author may ask for of a guest that runs, and what is told of it.
CABLES_TOLD = {
    "".join(f"<cable nic='n{n}'/>" for n in range(5_000)): "longer than 32768 bytes",
    "<a/>" * 1_000: "more than 256 cables",
    "<cable nic='ua-net0'/>" * 2: "two <cable>",
    f"<cable nic='{'n' * 9_000}'/>": "cannot be the name of a NIC",
    "<cable nic='ua-net0'>"
    + "<a>" * 200
    + "</a>" * 200
    + "</cable>": "a <'{urn:linkmgr:cables}a'>",
}


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
        assert max(during) < ANSWER_TIMEOUT_S
        assert longest < CALL_TIMEOUT_S, "libvirt itself answers no list while a domain starts"
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


@pytest.mark.timeout(180)
async def test_what_libvirt_takes_of_an_author_is_told_and_costs_the_others_nothing(
    tmp_path: Path,
) -> None:
    async with domain_lab(tmp_path, {"blue": "bridge", "red": "bridge"}) as lab:
        virsh = lab.libvirtd.virsh

        async def meanwhile(*words: str) -> None:
            """Have virsh do something, and replug web1 until that is done."""
            doing = asyncio.create_task(lab.libvirtd.try_virsh(*words, timeout=60))
            answering = lab.served.pid, lab.libvirtd.pid, os.getpid()
            try:
                while not doing.done():
                    began = own_time(*answering)
                    await replugs(lab, 2)
                    assert own_time(*answering) - began < 2 * ANSWER_TIMEOUT_S, words[0]
                    await asyncio.sleep(0.2)
            finally:
                await doing

        async def told(name: str, what: str) -> None:
            """Wait until `check` tells this of a guest, or nothing."""

            async def asked() -> bool:
                findings = [each for each in await lab.links.check() if name in each.subject]
                return any(what in each.what for each in findings) if what else not findings

            await until(asked, timeout=20, what=f"check tells of {name}: {what}", interval=0.2)

        for number, name in enumerate(("web1", "web2"), start=1):
            await lab.libvirtd.define(tiny_domain(lab.libvirtd, name, [NIC.format(number)]))
            await lab.prepare(name)
            await virsh("start", "--paused", name)
            await lab.settled(name, {})
        await replugs(lab, 2)

        files = {name: tmp_path / f"evil{number}" for number, name in enumerate(HURTS)}
        for name, file in files.items():
            plain = tiny_domain(lab.libvirtd, file.name, [NIC.format(3)])
            file.write_bytes(HURTS[name](prepare(plain.encode()).xml))
        await meanwhile("; ".join(f"define {each}" for each in files.values()))
        there = {each.name for each in await lab.links.domains()}
        assert len(there & {each.name for each in files.values()}) > len(files) / 2
        large = files["a long namespace"].name
        assert large in there
        refused = await lab.linkmgr("plug", f"{large}/ua-net0", "blue", check=False)
        assert "its XML cannot be read: the XML has a namespace longer" in refused.output
        await meanwhile("start", "--paused", large)

        await virsh("resume", "web2")  # a domain's cables are those of a guest that runs
        for inner, what in CABLES_TOLD.items():
            text = f"<cables>{inner}</cables>"
            edit = ["metadata", "web2", "urn:linkmgr:cables", "--key", "lm", "--live", "--set"]
            await meanwhile(*edit, text)
            await told("web2", what)
        await virsh("metadata", "web2", "urn:linkmgr:cables", "--live", "--remove")
        await told("web2", "")
        await told(large, "a namespace longer than 512 characters")
        for name in ("web1", "web2", large):
            await virsh("destroy", name)
