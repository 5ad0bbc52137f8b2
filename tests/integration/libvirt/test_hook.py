"""libvirt's hook under a real libvirtd: every step of a domain's life, and services that fail."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from linkmgr.testing.process import until
from tests.hook_copy import write_hook
from tests.integration.libvirtd import Libvirtd, private_libvirtd, tiny_domain
from tests.unit.hook_lab import HookLab, http

YES, NO = http({"ok": True, "said": ""}), http({"ok": False, "said": "there is no network blue"})
CLOSED = "[hook]\nfail_closed = true\n"
START = ["prepare/begin", "start/begin", "started/begin"]
STOP = ["stopped/end", "release/end"]
SLACK = 3.0  #: seconds that a start may take besides the hook, on a busy machine


@pytest.fixture
async def libvirtd() -> AsyncIterator[Libvirtd]:
    async with private_libvirtd() as made:
        yield made


@pytest.fixture
def lab(libvirtd: Libvirtd) -> HookLab:
    """What listens where the hook of this libvirtd asks."""
    return HookLab(libvirtd.run / "linkmgr")


def install(libvirtd: Libvirtd) -> None:
    """Put the hook in place, and let libvirtd look for hooks again."""
    write_hook(
        libvirtd.root / "etc/hooks/qemu.d/50-linkmgr",
        socket="/run/linkmgr/lm.sock", config="/run/linkmgr/linkmgr.toml", program="/bin/sh",
    )  # fmt: skip
    os.kill(libvirtd.pid, signal.SIGHUP)


def configure(lab: HookLab, text: str) -> None:
    (lab.folder / "linkmgr.toml").write_text(text)


def operations(lab: HookLab, name: str = "web1") -> list[str]:
    """What was heard of a domain since the last look, in order."""
    heard = [f"{each['operation']}/{each['sub_operation']}" for each in of(lab, name)]
    lab.heard[:] = [each for each in lab.heard if each["name"] != name]
    return heard


def of(lab: HookLab, name: str) -> list[dict[str, Any]]:
    return [each for each in lab.heard if each["name"] == name]


async def heard(lab: HookLab, count: int) -> None:
    """Wait for what the hook only handed over."""

    async def enough() -> bool:
        return len(lab.heard) >= count

    await until(enough, timeout=10, what=f"{count} hooks were heard")


async def state(libvirtd: Libvirtd, name: str = "web1") -> str:
    return await libvirtd.virsh("domstate", name)


@pytest.fixture
async def web1(libvirtd: Libvirtd) -> str:
    """A domain that is defined; its metadata asks for a cable."""
    wants = (
        "<metadata><lm:cables xmlns:lm='urn:linkmgr:cables'>"
        "<lm:cable nic='ua-net0' network='blue'/></lm:cables></metadata>"
    )
    nic = "<interface type='user'><alias name='ua-net0'/></interface>"
    await libvirtd.define(tiny_domain(libvirtd, "web1", [nic], more=wants))
    return "web1"


@pytest.mark.newer_debian
async def test_every_step_of_a_domains_life_is_handed_over_with_its_xml(
    libvirtd: Libvirtd, lab: HookLab, web1: str
) -> None:
    async with lab.service(lab.answering(YES)):
        await libvirtd.virsh("start", web1)
        await libvirtd.virsh("destroy", web1)
        assert lab.heard == []  # there was no hook when this libvirtd started
        install(libvirtd)

        await libvirtd.virsh("start", web1)
        await heard(lab, 3)
        for each in lab.heard:
            assert "<name>web1</name>" in each["xml"]
            assert "urn:linkmgr:cables" in each["xml"]
            assert "ua-net0" in each["xml"]
        assert operations(lab) == START

        await libvirtd.virsh("managedsave", web1)
        await heard(lab, 2)
        assert operations(lab) == STOP
        await libvirtd.virsh("start", web1)
        await heard(lab, 4)
        assert operations(lab) == ["restore/begin", *START]
        assert await state(libvirtd) == "running"

        for number in (signal.SIGTERM, signal.SIGKILL):
            await libvirtd.restart(number)
            await heard(lab, 1)
            assert operations(lab) == ["reconnect/begin"]
            assert await state(libvirtd) == "running"

        await libvirtd.virsh("reset", web1)
        await libvirtd.virsh("suspend", web1)
        await libvirtd.virsh("resume", web1)
        # QEMU may be gone before its answer is read; that it has gone is what the hooks tell.
        await libvirtd.try_virsh("qemu-monitor-command", web1, '{"execute": "quit"}')
        await heard(lab, 2)
        assert operations(lab) == STOP
        await libvirtd.virsh("start", web1)
        await libvirtd.virsh("destroy", web1)
        await heard(lab, 5)
        assert operations(lab) == START + STOP


async def test_a_start_is_refused_only_when_the_configuration_asks_for_it(
    libvirtd: Libvirtd, lab: HookLab, web1: str
) -> None:
    install(libvirtd)
    refused = await _refused(libvirtd, lab, web1)
    assert "linkmgr's service is not there" in refused
    assert "systemctl start linkmgr" in refused
    async with lab.service(lab.answering(NO)):
        refused = await _refused(libvirtd, lab, web1)
        assert "domain web1 is not started: there is no network blue" in refused
    async with lab.service(_never):
        begun = time.monotonic()
        configure(lab, f"{CLOSED}seconds = 0.5\n")
        refused = await _refused(libvirtd, lab, web1)
        assert "did not answer within 0.5 s" in refused
        assert time.monotonic() - begun < 0.5 + SLACK

    configure(lab, CLOSED)
    async with lab.service(lab.answering(YES)):
        await libvirtd.virsh("start", web1)
    # Fail-closed or not, and whatever the service says: who runs is never killed.
    for answer in (None, NO):
        if answer is None:
            await libvirtd.restart()
        else:
            async with lab.service(lab.answering(answer)):
                await libvirtd.restart()
        assert await state(libvirtd) == "running"
    await libvirtd.virsh("destroy", web1)

    configure(lab, "[hook]\nfail_closed = false\n")
    async with lab.service(lab.answering(NO)):
        await libvirtd.virsh("start", web1)
    await libvirtd.virsh("destroy", web1)
    await libvirtd.virsh("start", web1)
    assert await state(libvirtd) == "running"


async def _refused(libvirtd: Libvirtd, lab: HookLab, name: str) -> str:
    if not (lab.folder / "linkmgr.toml").exists():
        configure(lab, CLOSED)
    done = await libvirtd.try_virsh("start", name)
    assert done.status != 0
    assert await state(libvirtd, name) == "shut off"
    return done.output


async def _never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def test_a_service_that_hangs_or_dies_holds_a_start_up_no_longer_than_it_may(
    libvirtd: Libvirtd, lab: HookLab, web1: str
) -> None:
    async def once() -> float:
        begun = time.monotonic()
        await libvirtd.virsh("start", web1)
        taken = time.monotonic() - begun
        assert await state(libvirtd) == "running"
        await libvirtd.virsh("destroy", web1)
        return taken

    without = await once()
    install(libvirtd)
    configure(lab, "[hook]\nseconds = 1.0\n")
    assert await once() < without + SLACK  # nobody listens

    async with lab.service(_never):
        assert 1.0 <= await once() < without + 1.0 + SLACK

    async def killed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await lab.hear(reader)
        writer.transport.abort()  # as the kernel does for who is killed
        if lab.heard[-1]["operation"] == "started":
            lab.socket.unlink()

    configure(lab, "[hook]\nseconds = 20\n")
    async with lab.service(killed):
        assert await once() < without + SLACK
    assert operations(lab) == START
    # libvirtd itself is well: nothing waits for a hook any more.
    assert await libvirtd.virsh("list", "--name") == ""


@pytest.mark.timeout(180)
async def test_twenty_guests_start_at_once(libvirtd: Libvirtd, lab: HookLab) -> None:
    install(libvirtd)
    names = [f"web{number}" for number in range(1, 21)]
    for name in names:
        await libvirtd.define(tiny_domain(libvirtd, name, ["<interface type='user'/>"]))
    async with lab.service(lab.answering(YES, after=0.05)):
        async with asyncio.TaskGroup() as group:
            for name in names:  # paused: it is the hooks that run at once, not the guests
                group.create_task(libvirtd.virsh("start", "--paused", name, timeout=120))
        await heard(lab, 60)
        assert {name: operations(lab, name) for name in names} == dict.fromkeys(names, START)
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(libvirtd.virsh("destroy", name, timeout=120))
        await heard(lab, 40)
        assert {name: operations(lab, name) for name in names} == dict.fromkeys(names, STOP)
