"""``linkmgr prepare`` under a real libvirtd: define, prepare, boot without a cable, undo, boot."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from linkmgr import doctor
from linkmgr.doctor import Verdict
from linkmgr.hypervisors.qemu.qmp.info_network import parse_info_network
from linkmgr.libvirt.xml import qemu_namespace
from linkmgr.libvirt.xml.document import QEMU, Document
from linkmgr.libvirt.xml.monitor import OVERRIDE
from linkmgr.testing.process import ProcessFailed, execute, until
from linkmgr.wirings.hub.qemu_args import hub_number
from tests.integration.libvirtd import DomainGuest, Libvirtd, private_libvirtd, tiny_domain
from tests.prepared_once import prepared_once

MAC = "52:54:00:00:00:01"
BRIDGE = f"""<interface type='bridge'>
      <mac address='{MAC}'/>
      <source bridge='br-blue'/>
      <model type='virtio'/>
    </interface>"""


@pytest.fixture
async def libvirtd() -> AsyncIterator[Libvirtd]:
    async with private_libvirtd() as made:
        yield made


@pytest.fixture
async def bridge() -> AsyncIterator[str]:
    await execute(["ip", "link", "add", "br-blue", "type", "bridge"])
    await execute(["ip", "link", "set", "br-blue", "up"])
    yield "br-blue"
    await execute(["ip", "link", "del", "br-blue"])


async def prepare(
    libvirtd: Libvirtd, *words: str, xml: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run ``linkmgr prepare`` as a person does."""
    argv = [
        str(Path(sys.executable).with_name("linkmgr")),
        "prepare",
        "--connect",
        libvirtd.uri,
        *words,
    ]
    return await asyncio.to_thread(
        subprocess.run, argv, input=xml, capture_output=True, text=True, check=False, timeout=60
    )


class Dialled:
    """A socket on which a QEMU that dials is greeted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._calls: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.Queue()
        )

    async def __aenter__(self) -> Dialled:
        self._server = await asyncio.start_unix_server(
            lambda reader, writer: self._calls.put_nowait((reader, writer)), self.path
        )
        self.path.chmod(0o666)  # QEMU runs as libvirt-qemu
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        while not self._calls.empty():
            self._calls.get_nowait()[1].close()
        self.path.unlink(missing_ok=True)

    async def ask(self, *commands: str) -> list[Any]:
        """Take the next call, and ask each command."""
        async with asyncio.timeout(20):
            reader, writer = await self._calls.get()
            said = [json.loads(await reader.readline())]
            for command in ("qmp_capabilities", *commands):
                writer.write(json.dumps({"execute": command}).encode() + b"\n")
                while True:
                    answer = json.loads(await reader.readline())
                    if "event" not in answer:
                        break
                said.append(answer.get("return", answer))
            writer.close()
            await writer.wait_closed()
            return said


def devices() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


@pytest.mark.newer_debian
async def test_a_prepared_domain_boots_without_a_cable_dials_and_is_as_before_after_undo(
    libvirtd: Libvirtd, bridge: str
) -> None:
    before = devices()
    await libvirtd.define(tiny_domain(libvirtd, "web1", [BRIDGE]))
    # libvirt itself sorts the controllers when it reads its own XML for the first time.
    await libvirtd.define(await libvirtd.virsh("dumpxml", "--inactive", "web1"))
    original = await libvirtd.virsh("dumpxml", "--inactive", "web1")

    only_looked = await prepare(libvirtd, "web1")
    assert (only_looked.returncode, only_looked.stderr) == (0, "")
    assert "-    <interface type='bridge'>" in only_looked.stdout
    assert await libvirtd.virsh("dumpxml", "--inactive", "web1") == original

    defined = await prepare(libvirtd, "web1", "--define")
    assert (defined.returncode, defined.stdout) == (0, only_looked.stdout), defined.stderr
    again = await prepare(libvirtd, "web1", "--define")
    assert (again.returncode, again.stdout) == (0, ""), again.stdout
    assert "it is prepared already" in again.stderr

    async with (
        DomainGuest(libvirtd, "web1") as guest,
        Dialled(libvirtd.run / "linkmgr/qmp.sock") as dialled,
    ):
        await libvirtd.virsh("start", "web1")
        greeting, _, uuid, name = await dialled.ask("query-uuid", "query-name")
        assert "QMP" in greeting
        assert uuid == {"UUID": await libvirtd.virsh("domuuid", "web1")}
        assert name == {"name": "web1"}
        await guest.connect()
        assert not await guest.carrier("eth0")
        assert await guest.mac("eth0") == MAC

        # A service that was restarted is dialled again.
        uuid = (await dialled.ask("query-uuid"))[2]
        assert uuid == {"UUID": await libvirtd.virsh("domuuid", "web1")}

    info = parse_info_network(await libvirtd.hmp("web1", "info network"))
    place = info.hub_of("ua-net0")
    assert place is not None
    hub = info.hubs[place[0]]
    assert (hub.number, hub.backends) == (hub_number("ua-net0"), ())
    assert [port.id for port in hub.free] == ["lm-sink-ua-net0"]
    assert [str(port.peer) for port in hub.nics] == ["ua-net0"]
    assert "52:54:00:00:00:01" in await libvirtd.virsh("domiflist", "web1")
    assert not list(Path(f"/sys/class/net/{bridge}/brif").iterdir())

    running = await prepare(libvirtd, "web1", "--undo", "--define")
    assert running.returncode == 0, running.stderr
    assert "web1 runs, and keeps its wiring until it is shut down and started again" in (
        running.stderr
    )
    assert await libvirtd.virsh("dumpxml", "--inactive", "web1") == original
    await libvirtd.virsh("destroy", "web1")
    await until(lambda: _same(devices(), before), timeout=5, what="devices are gone")

    await libvirtd.virsh("start", "web1")
    async with DomainGuest(libvirtd, "web1") as guest:
        await guest.connect()
        assert await guest.carrier("eth0")
    assert len(list(Path(f"/sys/class/net/{bridge}/brif").iterdir())) == 1
    assert "hub" not in await libvirtd.hmp("web1", "info network")
    await libvirtd.virsh("destroy", "web1")
    await libvirtd.virsh("undefine", "web1")
    await until(lambda: _same(devices(), before), timeout=5, what="devices are gone")


#: What QEMU says of the monitor as older versions of linkmgr prepared it, from 10.2 on.
REFUSED = "Invalid parameter 'reconnect'"


async def starts_as_prepared_once(libvirtd: Libvirtd, name: str) -> bool:
    """Start, paused, what an older linkmgr prepared; whether this QEMU takes it."""
    done = await libvirtd.try_virsh("start", "--paused", name)
    if done.status:
        assert REFUSED in done.output
    return not done.status


@pytest.mark.newer_debian
async def test_what_an_older_linkmgr_prepared_is_prepared_anew_for_all_domains(
    libvirtd: Libvirtd,
) -> None:
    nic = "<interface type='user'/>"
    for name in ("web1", "web2"):
        await libvirtd.define(prepared_once(tiny_domain(libvirtd, name, [nic])))
    await libvirtd.define(tiny_domain(libvirtd, "web3", [nic]))
    plain = await libvirtd.virsh("dumpxml", "--inactive", "web3")

    (old,) = await doctor.prepared(libvirtd.uri)
    assert (old.verdict, "prepared web1, web2," in old.what) == (Verdict.MISSING, True)
    assert old.todo == "'linkmgr prepare --refresh --all'"

    one = await prepare(libvirtd, "web1", "--refresh")
    assert one.returncode == 0, one.stderr
    assert "-    <qemu:arg value='chardev=lm-qmp,mode=control'/>" in one.stdout
    assert "<channel type='unix'>" in await libvirtd.virsh("dumpxml", "--inactive", "web1")
    said = json.loads((await prepare(libvirtd, "--refresh", "--all", "--json")).stdout)
    assert [each["domain"] for each in said["domains"] if each["changed"]] == ["web2"]
    again = await prepare(libvirtd, "--refresh", "--all")
    assert (again.returncode, again.stdout) == (0, ""), again.stderr
    assert "no domain has to be prepared anew" in again.stderr
    (fine,) = await doctor.prepared(libvirtd.uri)
    assert fine.verdict is Verdict.WORKS
    assert await libvirtd.virsh("dumpxml", "--inactive", "web3") == plain
    assert "it was never prepared" in (await prepare(libvirtd, "web3", "--refresh")).stderr

    async with Dialled(libvirtd.run / "linkmgr/qmp.sock") as dialled:
        for name in ("web1", "web2"):
            await libvirtd.virsh("start", name)
            assert (await dialled.ask("query-name"))[2] == {"name": name}
            await libvirtd.virsh("destroy", name)
    undone = await prepare(libvirtd, "web1", "--undo", "--define")
    assert undone.returncode == 0, undone.stderr
    stored = await libvirtd.virsh("dumpxml", "--inactive", "web1")
    assert "qemu:" not in stored
    assert "linkmgr" not in stored


async def test_what_an_older_linkmgr_prepared_starts_or_is_refused_until_it_is_prepared_anew(
    libvirtd: Libvirtd,
) -> None:
    for name in ("web2", "web4"):
        xml = tiny_domain(libvirtd, name, ["<interface type='user'/>"])
        await libvirtd.define(prepared_once(xml))
    if await starts_as_prepared_once(libvirtd, "web4"):
        await libvirtd.virsh("managedsave", "web4")
        _, saved = await doctor.prepared(libvirtd.uri)
        assert (saved.name, "of web4 cannot" in saved.what) == ("saved states", True)
    every = await prepare(libvirtd, "--refresh", "--all")
    assert every.returncode == 0, every.stderr
    anew = "prepared anew; holds from its next start on\n"
    assert every.stdout == f"web2  {anew}web4  {anew}"
    has_saved = "web4" in await libvirtd.virsh("list", "--all", "--with-managed-save")
    assert ("note: web4: its saved state" in every.stderr) == has_saved
    for name in ("web2", "web4"):
        await libvirtd.virsh("start", "--paused", name)
        await libvirtd.virsh("destroy", name)


def deprecated_members(schema: list[Any], command: str) -> set[str]:
    """Names of the members that QEMU's schema calls deprecated, of all that a command takes."""
    types = {each["name"]: each for each in schema}
    found, ahead, seen = set[str](), [types[command]["arg-type"]], set[str]()
    while ahead:
        name = ahead.pop()
        if name in seen:
            continue
        seen.add(name)
        members = types[name].get("members", [])
        for each in members:
            if "deprecated" in each.get("features", []):
                found.add(each["name"])
        ahead += [each["type"] for each in [*members, *types[name].get("variants", [])]
                  if "type" in each]  # fmt: skip
    return found


@pytest.mark.newer_debian
async def test_a_prepared_domains_qemu_is_given_nothing_that_it_calls_deprecated(
    libvirtd: Libvirtd,
) -> None:
    """QEMU refuses an option some versions after it calls it deprecated."""
    await libvirtd.define(tiny_domain(libvirtd, "web1", ["<interface type='user'/>"]))
    assert (await prepare(libvirtd, "web1", "--define")).returncode == 0
    await libvirtd.virsh("start", "--paused", "web1")
    pid = int((libvirtd.run / "libvirt/qemu/web1.pid").read_text())
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    answer = await libvirtd.virsh("qemu-monitor-command", "web1", "query-qmp-schema")
    schema = json.loads(answer)["return"]
    await libvirtd.virsh("destroy", "web1")
    for option, command in (("-chardev", "chardev-add"), ("-netdev", "netdev_add")):
        given = [words[place + 1] for place, word in enumerate(words) if word == option]
        assert any("lm" in each for each in given), f"{option}: {given}"
        names = {re.split(r"=", part)[0] for each in given for part in each.split(",")}
        assert not names & deprecated_members(schema, command), given


async def test_doctor_lists_snapshots_that_a_newer_qemu_cannot_go_back_to(
    libvirtd: Libvirtd,
) -> None:
    image = f"{libvirtd.root}/images/disk.qcow2"
    await execute(["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"])
    disk = (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='{image}'/><target dev='vda' bus='virtio'/></disk>"
    )
    xml = tiny_domain(libvirtd, "web1", ["<interface type='user'/>"], devices=disk)
    await libvirtd.define(prepared_once(xml))
    if not await starts_as_prepared_once(libvirtd, "web1"):
        pytest.skip(f"this QEMU cannot make such a snapshot: {REFUSED}")
    await libvirtd.virsh("snapshot-create-as", "web1", "then")
    await libvirtd.virsh("destroy", "web1")
    assert (await prepare(libvirtd, "web1", "--refresh")).returncode == 0
    await libvirtd.virsh("start", "--paused", "web1")
    await libvirtd.virsh("snapshot-create-as", "web1", "now")
    (line,) = await doctor.prepared(libvirtd.uri)
    assert (line.name, line.verdict) == ("snapshots", Verdict.MISSING)
    assert line.what == "QEMU 10.2 and newer cannot go back to the snapshots web1/then"


def _device(*inside: str) -> str:
    return f"<qemu:device alias='ua-lmqmp'>{''.join(inside)}</qemu:device>"


def _frontend(*inside: str) -> str:
    return f"<qemu:frontend>{''.join(inside)}</qemu:frontend>"


def _override(*inside: str) -> str:
    return f"<qemu:override xmlns:qemu='{QEMU}'>{''.join(inside)}</qemu:override>"


@pytest.mark.newer_debian
async def test_of_several_overrides_of_one_property_linkmgr_believes_what_libvirt_obeys(
    libvirtd: Libvirtd, tmp_path: Path
) -> None:
    a, b = (f"<qemu:property name='chardev' type='string' value='{each}'/>" for each in "ab")
    remove = "<qemu:property name='chardev' type='remove'/>"
    written = {
        _override(_device(_frontend(a, b))): "b",
        _override(_device(_frontend(a), _frontend(b))): "b",
        _override(_device(_frontend(a)), _device(_frontend(b))): "b",
        _override(_device(_frontend(a))) + _override(_device(_frontend(b))): "b",
        _override(_device(_frontend(a, remove))): "",
        _override(_device(_frontend(remove, a))): "a",
        _override(_device(_frontend(a.replace("string", "unsigned").replace("'a'", "'7'")))): "7",
        _override(_device(a)): None,
        _override(_device(_frontend(a))).replace(":override", ":deviceoverride"): None,
    }
    done = await prepare(
        libvirtd, "-", "--xml", xml=tiny_domain(libvirtd, "web1", ["<interface type='user'/>"])
    )
    path = tmp_path / "web1.xml"
    for text, value in written.items():
        xml = re.sub(r"<qemu:override.*</qemu:override>", text, done.stdout, flags=re.DOTALL)
        assert text in xml
        path.write_text(xml)
        argv = await libvirtd.virsh("domxml-to-native", "qemu-argv", "--xml", str(path))
        (port,) = re.findall(r"\{[^{}]*\"id\":\"ua-lmqmp\"[^{}]*\}", argv)
        obeyed = json.loads(port).get("chardev", "")
        assert obeyed == {None: "charua-lmqmp", "7": 7}.get(value, value)
        assert qemu_namespace.override(Document(xml.encode()), *OVERRIDE) == value, text


async def test_the_socket_stays_roots_while_two_guests_dial_it(libvirtd: Libvirtd) -> None:
    """libvirt gives a channel's socket to the user of QEMU unless it is told not to."""
    path = libvirtd.run / "linkmgr/qmp.sock"
    async with Dialled(path) as dialled:

        async def dials(name: str) -> None:
            """Wait for its call; each calls again each second."""
            async with asyncio.timeout(20):
                while (await dialled.ask("query-name"))[2] != {"name": name}:
                    pass
            assert path.stat().st_uid == 0

        for name in ("web1", "web2"):
            await libvirtd.define(tiny_domain(libvirtd, name, ["<interface type='user'/>"]))
            assert (await prepare(libvirtd, name, "--define")).returncode == 0
            await libvirtd.virsh("start", "--paused", name)
            await dials(name)
        await libvirtd.virsh("destroy", "web1")
        await dials("web2")


async def test_a_record_that_somebody_edited_has_libvirt_run_nothing(libvirtd: Libvirtd) -> None:
    """libvirt would run the script as root at the next start."""
    await libvirtd.define(tiny_domain(libvirtd, "web1", ["<interface type='user'/>"]))
    assert (await prepare(libvirtd, "web1", "--define")).returncode == 0
    ran = libvirtd.root / "ran"
    script = libvirtd.root / "evil"
    script.write_text(f"#!/bin/sh\ntouch {ran}\n")
    script.chmod(0o755)
    record = f"<interface type='ethernet'><script path='{script}'/></interface>"
    await libvirtd.virsh(
        "metadata", "web1", "urn:linkmgr:prepared", "--config", "--key", "linkmgr", "--set",
        f"<prepared><nic alias='ua-net0'><![CDATA[{record}]]></nic></prepared>",
    )  # fmt: skip
    before = await libvirtd.virsh("dumpxml", "--inactive", "web1")
    refused = await prepare(libvirtd, "web1", "--undo", "--define")
    assert refused.returncode == 2
    assert f"<script path='{script}'>" in refused.stderr
    assert "--trust-metadata" in refused.stderr
    assert await libvirtd.virsh("dumpxml", "--inactive", "web1") == before
    await libvirtd.virsh("start", "--paused", "web1")
    await libvirtd.virsh("destroy", "web1")
    assert not ran.exists()
    trusted = await prepare(libvirtd, "web1", "--undo", "--define", "--trust-metadata")
    assert trusted.returncode == 0, trusted.stderr
    assert "again of type ethernet" in trusted.stderr
    assert str(script) in await libvirtd.virsh("dumpxml", "--inactive", "web1")


async def test_saved_state_is_refused_and_nothing_is_changed(libvirtd: Libvirtd) -> None:
    nic = f"<interface type='user'><mac address='{MAC}'/></interface>"
    await libvirtd.define(tiny_domain(libvirtd, "web1", [nic]))
    await libvirtd.virsh("start", "web1")
    await libvirtd.virsh("managedsave", "web1")
    stored = await libvirtd.virsh("dumpxml", "--inactive", "web1")
    for words in (["--define"], ["--undo"], []):
        refused = await prepare(libvirtd, "web1", *words)
        assert refused.returncode == 2
        assert "domain web1 has saved state (managedsave)" in refused.stderr
        assert "virsh managedsave-remove web1" in refused.stderr
    as_file = await prepare(libvirtd, "-", "--define", xml=stored)
    assert "saved state" in as_file.stderr
    assert await libvirtd.virsh("dumpxml", "--inactive", "web1") == stored

    await libvirtd.virsh("managedsave-remove", "web1")
    assert (await prepare(libvirtd, "web1", "--define")).returncode == 0


async def test_a_transient_domain_and_one_that_is_not_there_are_refused(
    libvirtd: Libvirtd, tmp_path: Path
) -> None:
    missing = await prepare(libvirtd, "web9")
    assert missing.returncode == 3
    assert "libvirt has no domain web9" in missing.stderr

    path = tmp_path / "web1.xml"
    path.write_text(tiny_domain(libvirtd, "web1", ["<interface type='user'/>"]))
    await libvirtd.virsh("create", str(path))
    transient = await prepare(libvirtd, "web1", "--define")
    assert transient.returncode == 2
    assert "domain web1 is transient" in transient.stderr
    await libvirtd.virsh("destroy", "web1")


async def test_a_nic_of_a_network_that_passes_devices_through_is_refused(
    libvirtd: Libvirtd, differs: Callable[[str, str], None]
) -> None:
    network = """<network><name>vfs</name>
        <forward mode='hostdev' managed='yes'><pf dev='eth9'/></forward></network>"""
    path = libvirtd.root / "network.xml"
    path.write_text(network)
    await libvirtd.virsh("net-define", str(path))
    nic = f"<interface type='network'><mac address='{MAC}'/><source network='vfs'/></interface>"
    await libvirtd.define(tiny_domain(libvirtd, "web1", [nic]))
    refused = await prepare(libvirtd, "web1")
    assert refused.returncode == 2
    assert f"web1/{MAC}: the NIC's network vfs passes a device of the host through" in (
        refused.stderr
    )
    (driver,) = Path("/usr/lib").glob("*/libvirt/connection-driver/libvirt_driver_network.so")
    owner = await execute(["dpkg", "-S", str(driver)])
    differs("package with libvirt's driver of networks", owner.output.partition(":")[0])


async def test_passwords_survive_and_are_not_shown(libvirtd: Libvirtd) -> None:
    vnc = "<graphics type='vnc' passwd='hunter2'/>"
    nic = "<interface type='user'/>"
    await libvirtd.define(tiny_domain(libvirtd, "web1", [nic], devices=vnc))
    done = await prepare(libvirtd, "web1", "--define", "--xml")
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert "hunter2" in await libvirtd.virsh("dumpxml", "--security-info", "web1")


async def test_what_libvirt_refuses_leaves_the_domain_as_it_was(libvirtd: Libvirtd) -> None:
    xml = tiny_domain(libvirtd, "web1", ["<interface type='user'/>"])
    await libvirtd.define(xml)
    stored = await libvirtd.virsh("dumpxml", "--inactive", "web1")
    other = xml.replace("<uuid>", "<uuid>1", 1).replace("web1.shell", "x.shell")
    broken = (
        other[: other.index("<uuid>") + 6]
        + "00000000-0000-0000-0000-000000000001"
        + (other[other.index("</uuid>") :])
    )
    refused = await prepare(libvirtd, "-", "--define", xml=broken)
    assert refused.returncode == 2
    assert "already" in refused.stderr
    assert await libvirtd.virsh("dumpxml", "--inactive", "web1") == stored


async def test_a_domain_copied_under_another_name_gets_a_device_of_its_own(
    libvirtd: Libvirtd,
) -> None:
    await libvirtd.define(tiny_domain(libvirtd, "web1", ["<interface type='user'/>"]))
    assert (await prepare(libvirtd, "web1", "--define")).returncode == 0
    first = await libvirtd.virsh("dumpxml", "--inactive", "web1")
    copy = first.replace("web1", "web2")
    copy = copy[: copy.index("<uuid>")] + copy[copy.index("</uuid>") + 7 :]
    done = await prepare(libvirtd, "-", "--define", xml=copy)
    assert done.returncode == 0, done.stderr
    for name in ("web1", "web2"):
        await libvirtd.virsh("start", name)
    taps = {name for name in devices() if name.startswith("lmn")}
    assert len(taps) == 2


async def test_guests_and_files_of_a_private_libvirtd_go_with_it() -> None:
    before = devices()
    async with private_libvirtd() as libvirtd:
        await libvirtd.define(tiny_domain(libvirtd, "web1", ["<interface type='user'/>"]))
        assert (await prepare(libvirtd, "web1", "--define")).returncode == 0
        await libvirtd.virsh("start", "web1")
        pid, root = DomainGuest(libvirtd, "web1").pid, libvirtd.root
        await libvirtd.restart()
        assert "running" in await libvirtd.virsh("domstate", "web1")
        os.kill(pid, 0)
    assert not root.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert devices() == before


async def test_a_program_that_libvirt_did_not_answer_raises(libvirtd: Libvirtd) -> None:
    with pytest.raises(ProcessFailed, match="web9"):
        await libvirtd.virsh("start", "web9")


async def _same(now: set[str], before: set[str]) -> bool:
    return now == before


@pytest.mark.parametrize("name", ["my vm", "-dash", "\u0441\u0435\u0440\u0432\u0435\u0440"])
async def test_what_is_advised_for_an_odd_name_works_when_it_is_pasted(
    libvirtd: Libvirtd, name: str
) -> None:
    await libvirtd.define(tiny_domain(libvirtd, name, [BRIDGE.replace("br-blue", "br-none")]))
    refused = await prepare(libvirtd, "--", name)
    assert refused.returncode == 2
    assert f"'{name}' cannot be the name of a VM" in refused.stderr
    (advised,) = re.findall(r"'(virsh domrename .*)'; use 1 to 63", refused.stderr)
    new = shlex.split(advised)[3]
    pasted = advised.replace("virsh", f"virsh --quiet --connect {shlex.quote(libvirtd.uri)}", 1)
    await execute(["sh", "-c", pasted])
    done = await prepare(libvirtd, new, "--define")
    assert done.returncode == 0, done.stderr
