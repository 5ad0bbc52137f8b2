"""The doctor says what works, what does not and what to do; it exits with 1 for what is needed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from linkmgr import doctor as probes
from linkmgr.cli import doctor
from linkmgr.doctor import ProbeResult, Verdict, kernel_probe, result, service_state

Program = Callable[[str, str], Path]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Put shell scripts into a PATH that has nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return make


def verdicts(lines: list[ProbeResult]) -> dict[str, Verdict]:
    return {each.name: each.verdict for each in lines}


# --- QEMU ---


@pytest.mark.parametrize("version", ["4.2.0", "7.2.22 (Debian 1:7.2+dfsg-7)", "11.1.0"])
async def test_a_qemu_of_4_2_or_newer_works(program: Program, version: str) -> None:
    program("qemu-system-x86_64", f"echo 'QEMU emulator version {version}'")
    (found,) = await probes.qemu()
    assert (found.verdict, found.todo) == (Verdict.WORKS, None)
    assert version.split(maxsplit=1)[0] in found.what


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'QEMU emulator version 4.1.1'", "too old"),
        ("echo 'QEMU emulator version 3.10'", "too old"),
        ("echo error while loading shared libraries; exit 127", "does not run"),
    ],
)
async def test_a_qemu_that_is_of_no_use_is_needed_in_another_version(
    program: Program, script: str, says: str
) -> None:
    program("qemu-system-x86_64", script)
    one, needed = await probes.qemu()
    assert says in one.what
    assert needed.bad


async def test_one_qemu_that_works_is_enough(program: Program) -> None:
    program("qemu-system-x86_64", "echo 'QEMU emulator version 2.0.0'")
    program("qemu-system-aarch64", "echo 'QEMU emulator version 9.0.0'")
    found = await probes.qemu()
    assert not any(each.bad for each in found)
    assert sorted(verdicts(found).values()) == [Verdict.MISSING, Verdict.WORKS]


async def test_no_qemu_is_a_needed_thing_missing(program: Program) -> None:
    (found,) = await probes.qemu()
    assert found.bad
    assert "apt install" in str(found.todo)


async def test_a_program_that_hangs_is_given_up(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result, "PROBE_TIMEOUT_S", 0.2)
    program("qemu-system-x86_64", "exec /bin/sleep 60")
    one, _ = await probes.qemu()
    assert "did not end within" in one.what


# --- libvirt and Open vSwitch ---


async def test_what_is_not_installed_is_not_needed(program: Program, tmp_path: Path) -> None:
    found = [*await probes.libvirt(tmp_path), *await probes.ovs(tmp_path / "db.sock")]
    assert [each.verdict for each in found] == [Verdict.MISSING, Verdict.MISSING]
    assert not any(each.bad for each in found)
    assert all(each.todo for each in found)


async def test_a_libvirt_that_listens_works(program: Program, tmp_path: Path) -> None:
    program("libvirtd", "echo 'libvirtd (libvirt) 9.0.0'")
    assert verdicts(await probes.libvirt(tmp_path))["daemon"] is Verdict.MISSING
    (tmp_path / "libvirt-sock").touch()
    found = (await probes.libvirt(tmp_path))[0]
    assert found.verdict is Verdict.WORKS
    assert "9.0.0" in found.what


async def test_the_libvirt_of_the_configuration_is_asked_itself(
    program: Program, tmp_path: Path
) -> None:
    program("libvirtd", "echo 'libvirtd (libvirt) 9.0.0'")
    program(
        "virsh",
        'case "$*" in *"--connect qemu:///system?socket=/run/own/sock "*) ;; *) exit 9; esac\n'
        '[ "$LIBVIRT_AUTOSTART" = 0 ] && echo "Running against daemon: 9.0.0"',
    )
    found = (await probes.libvirt(tmp_path, "qemu:///system?socket=/run/own/sock"))[0]
    assert (found.name, found.verdict, found.todo) == ("daemon", Verdict.WORKS, None)
    assert found.what == "libvirt 9.0.0, qemu:///system?socket=/run/own/sock: tested"


async def test_a_libvirt_of_the_configuration_that_does_not_answer_is_told(
    program: Program, tmp_path: Path
) -> None:
    (tmp_path / "libvirt-sock").touch()  # of another one
    (unasked, *_) = await probes.libvirt(tmp_path, "qemu:///session")
    assert (unasked.verdict, "virsh" in unasked.what) == (Verdict.UNKNOWN, True)
    program("virsh", "echo 'error: failed to connect' >&2; echo 'error: no such file' >&2; exit 1")
    (refused, *_) = await probes.libvirt(tmp_path, "qemu:///session")
    assert refused.verdict is Verdict.MISSING
    assert "qemu:///session does not answer: failed to connect no such file" in refused.what
    assert "[libvirt]" in str(refused.todo)


async def test_a_service_that_does_without_libvirt_misses_none(
    program: Program, tmp_path: Path
) -> None:
    (found,) = await probes.libvirt(tmp_path, "")
    assert (found.verdict, found.todo) == (Verdict.WORKS, None)


async def test_the_libvirt_that_is_looked_at_is_that_of_the_named_file(tmp_path: Path) -> None:
    file = tmp_path / "linkmgr.toml"
    assert (await probes.libvirt_section(file)).uri == "qemu:///system"
    file.write_text('[networks.blue]\ndriver = "bridge"\noptions = { bridge = "br0" }\n')
    assert (await probes.libvirt_section(file)).uri == "qemu:///system"
    file.write_text('[libvirt]\nuri = "qemu:///session"\n')
    assert (await probes.libvirt_section(file)).uri == "qemu:///session"
    file.write_text("[libvirt\n")
    assert (await probes.libvirt_section(file)).uri == "qemu:///system"


async def test_an_ovs_whose_database_does_not_answer_is_told(
    program: Program, tmp_path: Path
) -> None:
    program("ovs-vsctl", '[ "$1" = --version ] && echo "ovs-vsctl (Open vSwitch) 3.1.0" || exit 1')
    (tmp_path / "db.sock").touch()
    assert verdicts(await probes.ovs(tmp_path / "db.sock")) == {
        "ovs-vsctl": Verdict.WORKS,
        "database": Verdict.MISSING,
    }
    program("ovs-vsctl", 'echo "3.1.0"')
    assert verdicts(await probes.ovs(tmp_path / "db.sock"))["database"] is Verdict.WORKS


# --- kernel ---


def trial(monkeypatch: pytest.MonkeyPatch, answer: object, status: int = 0) -> None:
    said = answer if isinstance(answer, str) else json.dumps(answer)
    program = f"print({said!r}); raise SystemExit({status})"
    monkeypatch.setattr(kernel_probe, "TRIAL_COMMAND", [sys.executable, "-c", program])


def tried(**works: bool) -> dict[str, object]:
    names = [*kernel_probe.KERNEL_FEATURES, "openvswitch"]
    keys = {name.replace(" ", "_"): name for name in names}
    found = [
        {"name": name, "works": works.get(key, True), "detail": "" if works.get(key, True) else "x"}
        for key, name in keys.items()
    ]
    return {"tried": found}


async def test_a_kernel_without_macvtap_lacks_a_needed_thing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial(monkeypatch, tried(macvtap=False))
    found = {each.name: each for each in await probes.kernel()}
    assert found["macvtaps"].bad
    assert "modprobe macvtap" in str(found["macvtaps"].todo)
    assert found["taps"].verdict is Verdict.WORKS


async def test_a_kernel_without_bonding_lacks_nothing_that_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial(monkeypatch, tried(bonding=False, openvswitch=False))
    found = {each.name: each for each in await probes.kernel()}
    assert found["bonding"].verdict is Verdict.MISSING
    assert not found["bonding"].bad
    assert "userspace" in found["kernel datapath"].what


async def test_without_root_nothing_is_tried_and_nothing_is_called_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial(monkeypatch, {"error": "Operation not permitted", "denied": True})
    found = {each.name: each for each in await probes.kernel()}
    assert found["taps"].verdict is Verdict.UNKNOWN
    assert "sudo" in str(found["taps"].todo)
    assert not found["taps"].bad


@pytest.mark.parametrize("answer", ["", "Traceback: no such module", "[1]", "{}"])
async def test_a_trial_that_crashed_is_told_with_its_words(
    monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    trial(monkeypatch, answer, status=3)
    found = {each.name: each for each in await probes.kernel()}
    assert found["taps"].verdict is Verdict.UNKNOWN
    assert "status 3" in found["taps"].what


def test_a_host_without_an_iommu_has_no_vfio(tmp_path: Path) -> None:
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio/vfio").symlink_to(os.devnull)  # a character device
    (tmp_path / "net").mkdir()
    found = {each.name: each for each in kernel_probe.nodes(tmp_path, tmp_path / "sys")}
    assert found["VFIO"].verdict is Verdict.MISSING
    assert "IOMMU" in found["VFIO"].what
    assert found["/dev/net/tun"].bad
    (tmp_path / "sys/kernel/iommu_groups/0").mkdir(parents=True)
    found = {each.name: each for each in kernel_probe.nodes(tmp_path, tmp_path / "sys")}
    assert found["VFIO"].verdict is Verdict.WORKS


async def test_what_is_missing_and_nothing_uses_is_not_listed(
    monkeypatch: pytest.MonkeyPatch, program: Program, tmp_path: Path
) -> None:
    trial(monkeypatch, tried(bonding=False, openvswitch=False, nft=False, macvtap=False))
    names = {each.name for each in await doctor.look(tmp_path / "none.sock", None)}
    assert not names & {"bonding", "nftables", "kernel datapath", "ovs-vsctl"}
    assert {"macvtaps", "taps", "VXLAN", "socket"} <= names


async def test_a_host_without_libvirt_misses_none(
    monkeypatch: pytest.MonkeyPatch, program: Program, tmp_path: Path
) -> None:
    (none,) = await probes.libvirt(tmp_path)
    assert not none.used


# --- rights, service, configuration ---


async def test_a_new_member_of_the_group_is_told_to_log_in_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr(service_state, "groups_since_login", lambda: {"linkmgr"})
    found = {each.name: each for each in await probes.rights()}
    assert "log in again, or 'newgrp linkmgr'" in str(found["changes"].todo)
    monkeypatch.setattr(service_state, "groups_since_login", set)
    found = {each.name: each for each in await probes.rights()}
    assert "usermod" in str(found["changes"].todo)


async def test_without_the_group_only_root_changes_cables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_state, "GROUP", "no-such-group-here")
    found = {each.name: each for each in await probes.rights()}
    assert found["group"].verdict is Verdict.MISSING
    assert "groupadd" in str(found["group"].todo)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    found = {each.name: each for each in await probes.rights()}
    assert found["changes"].verdict is Verdict.MISSING
    assert "CAP_NET_ADMIN" not in found


async def test_a_root_without_the_capability_is_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(service_state, "_capabilities", lambda: 0)
    found = {each.name: each for each in await probes.rights()}
    assert found["CAP_NET_ADMIN"].bad


@asynccontextmanager
async def answering(path: Path, answer: bytes | None) -> AsyncIterator[None]:
    """A service that gives one answer, or none at all."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await ended.wait()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        ended.set()
        server.close()
        await server.wait_closed()


async def test_a_service_that_answers_tells_its_version(tmp_path: Path) -> None:
    answer = b'HTTP/1.1 200 OK\r\n\r\n{"status": "ok", "version": "1.2.3"}'
    async with answering(tmp_path / "sock", answer):
        found = {each.name: each for each in await probes.service(tmp_path / "sock")}
    assert found["answer"].verdict is Verdict.WORKS
    assert "1.2.3" in found["answer"].what


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 500 Oops\r\n\r\n{}", "500 Oops"),
        (b"HTTP/1.1 200 OK\r\n\r\nnot json", "does not answer"),
        (b"", "does not answer"),
        (None, "within"),
    ],
)
async def test_a_service_that_answers_wrongly_or_never_is_told(
    tmp_path: Path, answer: bytes | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_state, "SERVICE_TIMEOUT_S", 0.3)
    async with answering(tmp_path / "sock", answer):
        found = {each.name: each for each in await probes.service(tmp_path / "sock")}
    assert found["answer"].bad
    assert says in found["answer"].what


async def test_a_service_that_does_not_run_is_to_be_started(tmp_path: Path) -> None:
    (none,) = await probes.service(tmp_path / "sock")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "sock"))
    dead.close()
    _, refused = await probes.service(tmp_path / "sock")
    (tmp_path / "file").touch()
    (no_socket,) = await probes.service(tmp_path / "file")
    assert none.bad
    assert refused.bad
    assert no_socket.bad
    assert "systemctl start linkmgr" in str(none.todo)
    assert "--socket" in str(no_socket.todo)


async def test_a_configuration_is_checked_and_its_mistake_is_told(tmp_path: Path) -> None:
    file = tmp_path / "linkmgr.toml"
    (missing,) = await probes.configuration(file, asked=True)
    (fine,) = await probes.configuration(file, asked=False)
    assert (missing.bad, fine.bad) == (True, False)
    file.write_text('[networks.blue]\ndriver = "bridge"\noptions = { bridge = "br0" }\n')
    (right,) = await probes.configuration(file, asked=True)
    assert (right.verdict, "blue" in right.what) == (Verdict.WORKS, True)
    file.write_text("[networks.blue]\ndriver = 'bridge'\ncolour = 'blue'\n")
    (wrong,) = await probes.configuration(file, asked=True)
    assert wrong.bad
    assert "colour" in wrong.what
    assert "3" in wrong.what  # the line


async def test_a_configuration_that_may_have_been_cut_off_is_told(tmp_path: Path) -> None:
    file = tmp_path / "linkmgr.toml"
    file.write_text("")
    (empty,) = await probes.configuration(file, asked=True)
    assert (empty.bad, "is empty, as after a full disk" in empty.what) == (True, True)
    file.write_text("[limits]\nevents = 70")
    (cut,) = await probes.configuration(file, asked=True)
    assert (cut.verdict, cut.bad) == (Verdict.MISSING, False), "it is used all the same"
    assert "may have been cut off" in cut.what


# --- the command ---


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from linkmgr.cli import main; main()", *words],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_command_exits_with_1_and_prints_all_areas_as_json(tmp_path: Path) -> None:
    done = run("doctor", "--json", "--socket", str(tmp_path / "nobody"))
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert said["ok"] is False
    areas = {each["area"] for each in said["lines"]}
    assert areas >= {"kernel", "QEMU", "libvirt", "rights", "service", "configuration"}
    assert all(each["todo"] for each in said["lines"] if each["verdict"] == "missing")


def test_the_command_looks_for_the_libvirt_of_the_file_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "linkmgr.toml"
    file.write_text('[libvirt]\nuri = ""\n')
    done = run("doctor", "--json", "--config", str(file), "--socket", str(tmp_path / "nobody"))
    daemon = [each for each in json.loads(done.stdout)["lines"] if each["name"] == "daemon"]
    assert [each["verdict"] for each in daemon] == ["works"]
    assert "not used" in daemon[0]["what"]


def test_the_command_prints_plain_columns_where_no_terminal_is(tmp_path: Path) -> None:
    done = run("doctor", "--socket", str(tmp_path / "nobody"))
    assert done.returncode == 1
    result = next(each for each in done.stdout.splitlines() if each.startswith("service"))
    assert "NEEDED" in result
    assert "systemctl start linkmgr" in result
    assert "missing." in done.stdout.splitlines()[-1]
    assert "\x1b" not in done.stdout


def test_a_healthy_host_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show([ProbeResult("kernel", "taps", Verdict.WORKS, "for \x1b[31mbridges", needed=True)])
    said = capsys.readouterr().out
    assert said.endswith("Nothing that is needed is missing.\n")
    assert "\x1b" not in said
