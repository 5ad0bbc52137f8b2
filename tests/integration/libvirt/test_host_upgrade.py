"""A host whose QEMU is upgraded: domains, and saved state, that an older linkmgr prepared.

tests/data/prepared-e39dc5c.xml is what ``linkmgr prepare`` made at e39dc5c, before the monitor was
a channel of libvirt's: it dials with ``reconnect=1``, which QEMU 10.2 and newer refuse.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from linkmgr import doctor
from linkmgr.doctor import Verdict
from linkmgr.libvirt.prepare.saved_state import RECONNECT_MS_SINCE, RECONNECT_UNTIL, refresh_saved
from linkmgr.libvirt.prepare.virsh import Virsh
from linkmgr.testing import Station, images
from linkmgr.testing.process import Result, execute, until
from tests.integration.domain_lab import PROGRAM, DomainLab, domain_lab
from tests.integration.libvirtd import DomainGuest

OLD = (Path(__file__).parents[2] / "data/prepared-e39dc5c.xml").read_text()
REFUSED = "reconnect=1: Invalid parameter 'reconnect'"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[DomainLab]:
    async with domain_lab(tmp_path, {"blue": "bridge"}) as made:
        for name in ("vmlinuz", "initramfs.gz"):
            shutil.copy(images() / name, made.libvirtd.run / "lab")
        yield made


@pytest.fixture
def version(lab: DomainLab) -> tuple[int, int]:
    """Of this host's QEMU."""
    return Virsh(lab.libvirtd.uri).qemu_version()


async def refresh(lab: DomainLab, *words: str) -> Result:
    argv = [PROGRAM, "prepare", "--connect", lab.libvirtd.uri, "--refresh", *words]
    return await execute(argv, timeout=60)


async def passes_frames(guest: Station) -> None:
    async def answered() -> bool:
        return (await guest.run("ping -c 1 -W 2 10.1.0.1 >/dev/null && echo yes")).output != ""

    await until(answered, timeout=40, what="a frame from web1 and back")


async def plugged(lab: DomainLab, guest: DomainGuest) -> None:
    """Plug the guest, which boots or runs, and see its frames pass."""
    await until(lambda: _known(lab), timeout=20, what="web1 dials")
    await lab.linkmgr("plug", "web1", "blue")
    await guest.connect()
    await passes_frames(guest)


async def _known(lab: DomainLab) -> bool:
    return bool(await lab.nics("web1"))


async def test_a_domain_of_e39dc5c_is_named_before_it_fails_and_mended_by_one_command(
    lab: DomainLab, version: tuple[int, int], differs: Callable[[str, str], None]
) -> None:
    subject = "a start of a domain that an older linkmgr prepared"
    await lab.libvirtd.define(OLD)
    (line,) = await doctor.prepared(lab.libvirtd.uri)
    assert (line.verdict, line.todo) == (Verdict.MISSING, "'linkmgr prepare --refresh --all'")
    listed = await lab.linkmgr("nics")
    assert listed.output.rstrip().endswith("linkmgr prepare web1 --refresh")
    assert "prepared by an older" not in lab.served.said()

    started = await lab.libvirtd.try_virsh("start", "web1")
    warned = "domain web1 was prepared by an older linkmgr, and does not start with a QEMU of 10.2"
    await until(lambda: _says(lab, warned), timeout=10, what="the service's log names it")
    assert "To do: 'linkmgr prepare web1 --refresh'" in lab.served.said()
    if version >= RECONNECT_UNTIL:
        assert started.status == 1
        assert REFUSED in started.output
        assert "prepared web1, and QEMU {}.{} of this host cannot".format(*version) in line.what
        differs(subject, f"refused: {REFUSED}; named by doctor, nics and the log, and mended by "
                "'linkmgr prepare --refresh'")  # fmt: skip
    else:
        assert started.status == 0
        assert "prepared web1, and QEMU 10.2 and newer cannot start them" in line.what
        differs(subject, "works")
        await lab.libvirtd.virsh("destroy", "web1")

    await refresh(lab, "web1")
    (line,) = await doctor.prepared(lab.libvirtd.uri)
    assert line.verdict is Verdict.WORKS
    async with DomainGuest(lab.libvirtd, "web1") as guest:
        await lab.libvirtd.virsh("start", "web1")
        await plugged(lab, guest)
    assert "refresh" not in (await lab.linkmgr("nics")).output
    await lab.libvirtd.virsh("destroy", "web1")
    await lab.nothing_left("web1")


async def test_saved_state_of_e39dc5c_is_told_of_and_runs_on_with_the_qemu_that_is_here(
    lab: DomainLab, version: tuple[int, int], differs: Callable[[str, str], None]
) -> None:
    libvirtd = lab.libvirtd
    async with DomainGuest(libvirtd, "web1") as guest:
        await saved_as_once(lab, guest, version)
        assert "reconnect=1" in await libvirtd.virsh("managedsave-dumpxml", "web1")
        _, line = await doctor.prepared(libvirtd.uri)
        assert (line.name, line.verdict) == ("saved states", Verdict.MISSING)
        assert "the saved states of web1 cannot be resumed by QEMU" in line.what
        assert "'linkmgr prepare --refresh --all'" in str(line.todo)

        subject = "saved state of a domain that an older linkmgr prepared"
        if version >= RECONNECT_UNTIL:
            assert REFUSED in (await libvirtd.try_virsh("start", "web1")).output
            assert "web1" in await libvirtd.virsh("list", "--all", "--with-managed-save")
        else:
            await resumed(lab, guest)
            differs(subject, "works")
            await guest.stop()
            await save(lab, OLD, version)
        made = await refresh(lab, "--all")
        assert "web1  prepared anew; holds from its next start on" in made.output
        if version >= RECONNECT_MS_SINCE:
            said = "web1: its saved state was changed so that QEMU {}.{} resumes it"
            assert said.format(*version) in made.output
            (line,) = await doctor.prepared(libvirtd.uri)
            assert line.verdict is Verdict.WORKS
        else:
            assert "web1: its saved state stays as it is, which QEMU" in made.output
            assert (await doctor.prepared(libvirtd.uri))[0].name == "saved states"

        await resumed(lab, guest)
        if version >= RECONNECT_UNTIL:
            differs(subject, "refused until 'linkmgr prepare --refresh' has changed it; then the "
                    "guest runs on")  # fmt: skip
        assert "reconnect=" not in await libvirtd.virsh("dumpxml", "--inactive", "web1")
        await libvirtd.virsh("destroy", "web1")
        await lab.nothing_left("web1")

        await libvirtd.virsh("start", "web1")
        await plugged(lab, guest)
        await libvirtd.virsh("destroy", "web1")


async def test_saved_state_keeps_its_password_and_is_changed_for_libvirts_qemu_only(
    lab: DomainLab, version: tuple[int, int]
) -> None:
    vnc = (
        "<graphics type='vnc' passwd='secret'><listen type='socket' socket='/run/lab/vnc'/>"
        "</graphics>"
    )
    xml = OLD.replace("<memballoon model='none'/>", f"<memballoon model='none'/>{vnc}")
    await lab.libvirtd.define(startable(xml, version))
    await lab.libvirtd.virsh("start", "--paused", "web1")
    await save(lab, xml, version)

    class Newer(Virsh):
        """libvirt, with a QEMU that knows ``reconnect-ms=``."""

        def qemu_version(self) -> tuple[int, int]:
            return max(super().qemu_version(), RECONNECT_MS_SINCE)

    class Other(Newer):
        """libvirt, with a QEMU that is not the one of the domain."""

        def default_emulator(self, architecture: str) -> str:
            assert super().default_emulator(architecture) == "/usr/bin/qemu-system-x86_64"
            return "/usr/bin/another"

    said = await asyncio.to_thread(refresh_saved, Other(lab.libvirtd.uri), "web1")
    assert "does not tell the version of '/usr/bin/qemu-system-x86_64'" in str(said)
    assert "'virsh managedsave-edit web1'" in str(said)
    virsh = Newer(lab.libvirtd.uri)
    assert ",reconnect=1'/>" in virsh.saved_xml("web1").decode()
    said = await asyncio.to_thread(refresh_saved, virsh, "web1")
    assert "was changed so that QEMU" in str(said)
    kept = virsh.saved_xml("web1", secrets=True).decode()
    assert "passwd='secret'" in kept
    assert ",reconnect-ms=1000'/>" in kept
    assert await asyncio.to_thread(refresh_saved, virsh, "web1") is None


def startable(xml: str, version: tuple[int, int]) -> str:
    """XML of an older linkmgr as this QEMU takes it."""
    return xml if version < RECONNECT_UNTIL else xml.replace("reconnect=1", "reconnect-ms=1000")


async def saved_as_once(lab: DomainLab, guest: DomainGuest, version: tuple[int, int]) -> None:
    """Have a guest that ran and is saved, with the XML of an older linkmgr."""
    await lab.libvirtd.define(startable(OLD, version))
    await lab.libvirtd.virsh("start", "web1")
    await plugged(lab, guest)
    await guest.run("echo before >/tmp/mark")
    await guest.stop()
    await save(lab, OLD, version)


async def resumed(lab: DomainLab, guest: DomainGuest) -> None:
    """Start the domain from its saved state, and see that its guest runs on and passes frames."""
    await lab.libvirtd.virsh("start", "web1", timeout=60)
    await guest.connect()
    assert (await guest.run("cat /tmp/mark")).output == "before\n"
    await passes_frames(guest)  # plugged again, as its live XML asks


async def save(lab: DomainLab, xml: str, version: tuple[int, int]) -> None:
    """Have saved state with the XML that an older QEMU saved; the memory is this QEMU's."""
    libvirtd = lab.libvirtd
    await libvirtd.virsh("managedsave", "web1", timeout=100)
    await libvirtd.define(xml)
    if startable(xml, version) != xml:
        with (libvirtd.root / "lib/qemu/save/web1.save").open("r+b") as file:
            head = file.read(1 << 16)
            # As long as before: the offsets in the file's header stay right.
            new, old = b"reconnect-ms=1000'/>", b"reconnect=1'/>      "
            assert (head.count(new), len(new)) == (1, len(old))
            file.seek(0)
            file.write(head.replace(new, old))


async def _says(lab: DomainLab, text: str) -> bool:
    return text in lab.served.said()
