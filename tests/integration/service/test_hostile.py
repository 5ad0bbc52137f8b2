"""Callers that send too much, too slowly, do not read, or are not who they should be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from linkmgr import Client, NicState
from linkmgr.errors import BadName, BadRequest, Forbidden, MonitorUnreachable, UnknownPort
from linkmgr.host import Fd
from linkmgr.model import VmState
from linkmgr.testing.process import execute, until
from tests.integration.cli.test_cli import Host, make_host
from tests.integration.drivers.test_fd import open_tap
from tests.integration.lab import Lab
from tests.integration.silent_fuse import silent_fuse
from tests.unit.service.auth.test_service_access import CHANGES, CLIENT
from tests.unit.service_lab import read_answer, request

STRANGER = 65534
NIC = "web1/net0"
STREAMS = 200
#: Bytes that an idle stream may cost: its protocol, its task and its socket; measured are 20 KiB.
PER_STREAM = 48 << 10
#: Seconds in which others are answered, whatever goes on; a swap takes a tenth of that.
ANSWER_TIMEOUT_S = 2.0

# Becomes another user, who leaves an fd; prints the answer.
LEAVE = """
import json, os, socket, sys
path, uid, name, fd = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
os.setgroups([]); os.setgid(uid); os.setuid(uid)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    sock.connect(path)
    socket.send_fds(sock, [json.dumps({"name": name}).encode()], [fd])
    print(sock.recv(65536).decode())
"""


@asynccontextmanager
async def serving(
    folder: Path, config: str = "", command: str = "linkmgr serve"
) -> AsyncIterator[Host]:
    """The service, reachable by everybody."""
    for each in (folder, *folder.parents[:2]):  # pytest's own are for root only
        each.chmod(0o755)
    (folder / "linkmgr.toml").write_text(config or "# defaults\n")
    async with make_host(folder, f"{command} --config {folder}/linkmgr.toml") as host:
        yield host
        assert "Traceback" not in host.said()


@pytest.fixture
async def host(tmp_path: Path, lab: Lab) -> AsyncIterator[Host]:
    async with serving(tmp_path, "[limits]\nrequest_seconds = 1.5\n") as made:
        yield made


def resident(host: Host) -> int:
    """Bytes of memory that the service has."""
    assert host.child
    status = Path(f"/proc/{host.child.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) << 10


def open_files(host: Host) -> int:
    assert host.child
    return len(list(Path(f"/proc/{host.child.pid}/fd").iterdir()))


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connections(host: Host, number: int) -> AsyncIterator[list[Connection]]:
    made: list[Connection] = []
    try:
        for _ in range(number):
            made.append(await asyncio.open_unix_connection(host.socket))
        yield made
    finally:
        for _, writer in made:
            writer.close()
        for _, writer in made:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def ready(host: Host, lab: Lab) -> None:
    """Have a NIC and two networks."""
    guest = await lab.guest(boot=False, add=False)
    async with Client(host.socket) as links:
        await links.add_vm("web1", guest.qmp_path)
        for name in ("blue", "red"):
            await lab.network(name)
            await links.create_network(name, "bridge", bridge=f"br-{name}")
        await links.plug(NIC, "blue", notify="silent")


async def slowest_of(host: Host, times: int) -> float:
    """Seconds that the slowest of some swaps and looks took, as another caller sees it."""
    slowest = 0.0
    async with Client(host.socket) as links:
        for number in range(times):
            began = time.monotonic()
            done = await links.plug(NIC, ("red", "blue")[number % 2], notify="silent")
            assert done.changed
            await links.nics()
            slowest = max(slowest, time.monotonic() - began)
    return slowest


# --- too much, too slowly -------------------------------------------------------------------------
async def test_bodies_that_are_too_large_cost_no_memory_and_no_time_of_others(
    host: Host, lab: Lab
) -> None:
    await ready(host, lab)
    await slowest_of(host, 4)
    before = resident(host)
    size = 8 << 20

    async def send(number: int, connection: Connection) -> int:
        reader, writer = connection
        if number % 2:
            writer.write(request("POST", "/v1/networks", headers={"Content-Length": str(size)}))
        else:
            chunked = {"Content-Length": "", "Transfer-Encoding": "chunked"}
            writer.write(request("POST", "/v1/networks", headers=chunked))
        answer = asyncio.create_task(read_answer(reader))
        with contextlib.suppress(OSError):
            for _ in range(size >> 16):
                if answer.done():
                    break  # it has said that it takes no more
                data = b"x" * (1 << 16)
                writer.write(data if number % 2 else b"10000\r\n" + data + b"\r\n")
                await writer.drain()
        return (await answer).status

    async with connections(host, 40) as made:
        sending = asyncio.gather(*(send(n, each) for n, each in enumerate(made)))
        slowest = await slowest_of(host, 6)
        assert set(await sending) == {413}
    assert slowest < ANSWER_TIMEOUT_S
    assert resident(host) - before < 16 << 20, "40 bodies of 8 MiB"


async def test_clients_that_send_a_byte_a_second_are_given_up_and_hold_nobody_up(
    host: Host, lab: Lab
) -> None:
    await ready(host, lab)
    body = json.dumps({"name": "green", "driver": "bridge", "options": {"bridge": "br7"}})
    whole = request("POST", "/v1/networks", raw=body.encode())
    head = whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    async def send(number: int, connection: Connection) -> int:
        reader, writer = connection
        rest = whole
        if number % 2:  # the head at once, the body slowly
            writer.write(head)
            rest = whole[len(head) :]
        answer = asyncio.create_task(read_answer(reader))
        for byte in rest:
            with contextlib.suppress(OSError):
                writer.write(bytes([byte]))
            done, _ = await asyncio.wait([answer], timeout=1)
            if done:
                break
        return (await answer).status

    async with connections(host, 40) as made:
        began = time.monotonic()
        sending = asyncio.gather(*(send(n, each) for n, each in enumerate(made)))
        slowest = await slowest_of(host, 6)
        assert set(await sending) == {408}
        assert 1 < time.monotonic() - began < 6, "the limit of this service is 1.5 s"
    assert slowest < ANSWER_TIMEOUT_S
    async with Client(host.socket) as links:
        assert {network.name for network in await links.networks()} == {"blue", "red"}


async def test_connections_that_are_half_closed_are_answered_and_let_go(
    host: Host, lab: Lab
) -> None:
    await ready(host, lab)
    before = open_files(host)
    asked: list[Callable[[], bytes]] = [
        lambda: request("GET", "/v1/nics"),
        lambda: request("GET", "/v1/nics")[:20],
        lambda: request("POST", "/v1/networks", headers={"Content-Length": "100"}) + b"{",
        lambda: b"",
    ]
    async with connections(host, 40) as made:
        for number, (_, writer) in enumerate(made):
            writer.write(asked[number % len(asked)]())
            writer.write_eof()
        assert await slowest_of(host, 6) < ANSWER_TIMEOUT_S
        async with asyncio.timeout(10):
            said = [await reader.read() for reader, _ in made]
        assert all(text == b"" or text.startswith(b"HTTP/1.1 ") for text in said)

        async def let_go() -> bool:
            return open_files(host) <= before

        await until(let_go, timeout=10, what="the service closes them")


# --- event streams --------------------------------------------------------------------------------
async def listening(connection: Connection) -> None:
    reader, writer = connection
    writer.write(request("GET", "/v1/events"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")


async def test_two_hundred_idle_event_streams_cost_little_and_give_it_back(
    host: Host, lab: Lab
) -> None:
    await ready(host, lab)
    await slowest_of(host, 6)
    before, files = resident(host), open_files(host)
    grown = []
    for _ in range(3):
        async with connections(host, STREAMS) as made:
            for each in made:
                await listening(each)
            grown.append(resident(host) - before)
            assert await slowest_of(host, 6) < ANSWER_TIMEOUT_S

            async def hear(connection: Connection) -> None:
                while b"event: replugged" not in await connection[0].readline():
                    pass

            async with asyncio.timeout(10):
                await asyncio.gather(*(hear(each) for each in made))

        async def let_go() -> bool:
            return open_files(host) <= files

        await until(let_go, timeout=10, what="the service closes them")
    assert max(grown) < STREAMS * PER_STREAM
    assert grown[2] - grown[0] < STREAMS * PER_STREAM / 3, f"each time it takes more: {grown}"


async def test_a_client_that_never_reads_its_events_costs_little_and_is_told_that_it_missed_some(
    tmp_path: Path, lab: Lab
) -> None:
    async with serving(tmp_path, "[limits]\nevents = 20\n") as host:
        await ready(host, lab)
        before = resident(host)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(str(host.socket))
            deaf.send(request("GET", "/v1/events"))
            async with connections(host, 1) as made:
                ((reader, writer),) = made
                for _ in range(2000):  # each is an event of half a kilobyte
                    writer.write(request("PUT", f"/v1/connections/{NIC}", {"target": "nowhere"}))
                    assert (await read_answer(reader)).status == 404
            assert await slowest_of(host, 6) < ANSWER_TIMEOUT_S
            assert resident(host) - before < 8 << 20
            deaf.setblocking(False)
            said = b""
            async with asyncio.timeout(10):
                while b"event: reset" not in said:
                    said += await loop.sock_recv(deaf, 1 << 20)
                await slowest_of(host, 1)
                while b"event: replugged" not in said:  # it hears again what happens
                    said += await loop.sock_recv(deaf, 1 << 20)
        assert said.count(b"event: failed") < 1500


# --- who is not allowed ---------------------------------------------------------------------------
async def as_stranger(host: Host, requests: list[tuple[str, str, object]]) -> list[Any]:
    """Ask as a user outside the group; status and document of each answer."""
    given = json.dumps([str(host.socket), STRANGER, STRANGER, [], requests])
    return list(json.loads((await execute([sys.executable, "-c", CLIENT, given])).output))


async def everything(host: Host) -> list[object]:
    """All that a caller can see, and what the kernel has."""
    async with Client(host.socket) as links:
        ports = [port for net in await links.networks() for port in await links.ports(net.name)]
        seen = [await links.vms(), await links.nics(), await links.networks(), ports]
    return [*seen, {path.name: (path / "ifindex").read_text() for path in devices()}]


def devices() -> list[Path]:
    return sorted(Path("/sys/class/net").iterdir())


async def test_a_user_outside_the_group_can_change_nothing(host: Host, lab: Lab) -> None:
    await ready(host, lab)
    async with Client(host.socket) as links:
        await links.create_port("blue", "p7")
        document = json.loads(await _text(host, "/openapi.json"))
    changing = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
        if method != "get"
    }
    hook = {"operation": "started", "name": "web1", "xml": "<domain><name>web1</name></domain>"}
    tried = [*CHANGES, ("POST", "/v1/libvirt/hook", hook)]
    assert len(changing) == len(tried), "a changing route is not tried"
    before = await everything(host)
    for status, problem in await as_stranger(host, tried):
        assert (status, problem["code"]) == (403, "forbidden"), problem
    assert await everything(host) == before
    looked = await as_stranger(host, [("GET", "/v1/nics", None), ("GET", "/healthz", None)])
    assert [status for status, _ in looked] == [200, 200]


async def test_a_user_outside_the_group_learns_nothing_of_files(host: Host, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir(mode=0o700)
    (tmp_path / "secret" / "there").touch()
    asked: list[tuple[str, str, object]] = [
        ("POST", "/v1/vms", {"name": "web2", "qmp": f"{tmp_path}/secret/{name}"})
        for name in ("there", "nothere")
    ]
    there, nothere = await as_stranger(host, asked)
    assert there == nothere
    assert there[0] == 403


async def test_an_fd_of_another_uid_cannot_be_used(tmp_path: Path, lab: Lab) -> None:
    rule = f'[[access.rules]]\nuser = {STRANGER}\nnics = ["web1/*"]\nnetworks = ["*"]\n'
    async with serving(tmp_path, rule) as host:
        await ready(host, lab)
        left: dict[int, Fd] = {}
        for uid, name in ((0, "roots"), (STRANGER, "strangers")):
            fd = open_tap(f"tap{uid}")
            left[uid] = fd
            with fd:
                answer = await leave(tmp_path / "fd.sock", uid, name, fd)
            assert answer["ok"] is True, answer
        plugs: list[tuple[str, str, object]] = [
            ("PUT", f"/v1/connections/{NIC}", {"target": target})
            for target in ("fd:roots", "fd:0.roots")
        ]
        for status, problem in await as_stranger(host, plugs):
            assert (status, problem["code"]) == (404, "unknown-port"), problem
        async with Client(host.socket) as links:
            with pytest.raises(UnknownPort):
                await links.plug(NIC, "fd:strangers")
            assert str((await links.connections())[0].port) == "blue"
            own: list[tuple[str, str, object]] = [
                ("PUT", f"/v1/connections/{NIC}", {"target": "fd:strangers", "notify": "silent"})
            ]
            ((status, outcome),) = await as_stranger(host, own)
            assert (status, outcome["nic"]["state"]) == (200, "plugged"), outcome
            await links.plug(NIC, "fd:roots", notify="silent")
            await links.unplug(NIC)


async def leave(path: Path, uid: int, name: str, fd: Fd) -> Any:
    os.set_inheritable(fd.number, True)
    command = [sys.executable, "-c", LEAVE, str(path), str(uid), name, str(fd.number)]
    process = await asyncio.create_subprocess_exec(
        *command, pass_fds=[fd.number], stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    return json.loads(said)


async def test_a_user_with_rules_cannot_give_anothers_vm_a_name_of_his(
    tmp_path: Path, lab: Lab
) -> None:
    rule = f'[[access.rules]]\nuser = {STRANGER}\nverbs = ["add_vm"]\nnics = ["mine/*"]\n'
    async with serving(tmp_path, rule) as host:
        guest = await lab.guest("mine", boot=False, add=False)
        add: tuple[str, str, object] = (
            "POST", "/v1/vms", {"name": "mine", "qmp": str(guest.qmp_path)},
        )  # fmt: skip
        ((status, problem),) = await as_stranger(host, [add])
        assert (status, problem["code"]) == (403, "forbidden"), problem
        assert "belongs to uid 0" in problem["what"]
        os.chown(guest.qmp_path, STRANGER, STRANGER)
        ((status, added),) = await as_stranger(host, [add])
        assert (status, added["nics"][0]["ref"]) == (200, "mine/net0")


# --- names and paths ------------------------------------------------------------------------------
NAMES_THAT_LEAD_ELSEWHERE = ("../../x", "..", "a/b", "/etc/passwd", "a\0b", "a\nb", "%2e%2e")


async def test_a_vm_name_that_leads_elsewhere_is_refused(
    host: Host, lab: Lab, tmp_path: Path
) -> None:
    guest = await lab.guest(boot=False, add=False)
    for name in NAMES_THAT_LEAD_ELSEWHERE:
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        reader, writer = await asyncio.open_unix_connection(host.socket)
        body = {"name": name, "qmp": str(guest.qmp_path)}
        writer.write(request("POST", "/v1/vms", body))
        answer = await read_answer(reader)
        assert (answer.status, answer.json["code"]) == (400, "bad-name"), name
        quoted = name.replace("%", "%25").replace("/", "%2F")
        quoted = quoted.replace("\0", "%00").replace("\n", "%0A")
        writer.write(request("DELETE", f"/v1/vms/{quoted}"))
        answer = await read_answer(reader)
        assert answer.status in (400, 404), name
        writer.close()
        await writer.wait_closed()
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == before, name
        async with Client(host.socket) as links:
            assert await links.vms() == [], name


async def test_an_interface_name_that_leads_elsewhere_is_refused(host: Host) -> None:
    async with Client(host.socket) as links:
        for device in ("a/b", "../lo", "/dev/null", "lo\0", "x" * 128):
            for driver, option in (("bridge", "bridge"), ("direct", "parent")):
                with pytest.raises(BadName, match="cannot be the name of a network device"):
                    await links.create_network("pink", driver, **{option: device})
            assert await links.networks() == [], device


async def test_a_monitor_that_is_a_link_to_another_vms_is_refused(
    host: Host, lab: Lab, tmp_path: Path
) -> None:
    guest = await lab.guest(boot=False, add=False)
    link, folder = tmp_path / "web2.qmp", tmp_path / "shared"
    link.symlink_to(guest.qmp_path)
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "vms").symlink_to(tmp_path)
    async with Client(host.socket) as links:
        for path in (link, folder / "vms" / guest.qmp_path.name):
            with pytest.raises(BadRequest, match="is a symbolic link"):
                await links.add_vm("web2", path)
        assert await links.vms() == []
        os.chown(guest.qmp_path, STRANGER, STRANGER)  # root may name anybody's
        (nic,) = await links.add_vm("web1", guest.qmp_path)
        assert nic.state is NicState.UNPLUGGED


async def test_who_is_refused_once_may_ask_again(host: Host) -> None:
    os.seteuid(STRANGER)
    try:
        async with Client(host.socket) as links:
            for _ in range(20):
                with pytest.raises(Forbidden):
                    await links.delete_network("blue")
            assert await links.networks() == []
    finally:
        os.seteuid(0)


async def _text(host: Host, path: str) -> str:
    reader, writer = await asyncio.open_unix_connection(host.socket)
    writer.write(request("GET", path))
    answer = await read_answer(reader)
    writer.close()
    await writer.wait_closed()
    return answer.raw.decode()


# --- a QEMU that was taken over -------------------------------------------------------------------
#: Seconds that a hostile QEMU works, at the most; a test ends it before.
WORST = 40
#: How much longer another guest's replug may take than while the same is done to a sink.
AS_BEFORE = 3.0


@asynccontextmanager
async def hostile_qemu(path: Path, how: str) -> AsyncIterator[None]:
    """A process that speaks QMP, and does its worst once a file ``.go`` is there."""
    command = [sys.executable, "-m", "tests.integration.hostile_qemu", str(path), how, str(WORST)]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert child.stdout
    try:
        assert await child.stdout.readline() == b"listening\n"
        yield
    finally:
        child.kill()
        await child.wait()


@asynccontextmanager
async def sink_of(path: Path) -> AsyncIterator[None]:
    """Somebody who reads all that it says, and makes nothing of it."""
    read = f"""
import socket, sys, time
end = time.monotonic() + {WORST}
while time.monotonic() < end:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect({str(path)!r})
        while sock.recv(1 << 16) and time.monotonic() < end: pass
    time.sleep(0.01)
"""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", read)
    try:
        yield
    finally:
        child.kill()
        await child.wait()


async def replugs(host: Host, times: int) -> list[float]:
    """Seconds that each of some replugs took, as their caller sees it."""
    taken = []
    async with Client(host.socket) as links:
        for number in range(times):
            began = time.monotonic()
            await links.plug(NIC, ("red", "blue")[number % 2], notify="silent")
            taken.append(time.monotonic() - began)
    return sorted(taken)


async def look_again_and_again(host: Host) -> None:
    """List all NICs, for which the hostile one is asked, too."""
    async with Client(host.socket) as links:
        while True:
            await links.nics()
            await asyncio.sleep(0.2)


@pytest.mark.parametrize(
    "how",
    ["small events", "wanted events", "lists", "reasons", "hubs", "slow", "hang up"],
)
async def test_a_hostile_qemu_does_not_slow_another_guests_replug(
    host: Host, lab: Lab, tmp_path: Path, how: str
) -> None:
    await ready(host, lab)
    await replugs(host, 4)
    async with hostile_qemu(tmp_path / "sink.qmp", how), sink_of(tmp_path / "sink.qmp"):
        (tmp_path / "sink.go").touch()
        before = await replugs(host, 12)
    async with hostile_qemu(tmp_path / "evil.qmp", how):
        async with Client(host.socket) as links:
            await links.add_vm("evil", tmp_path / "evil.qmp")
        memory = resident(host)
        (tmp_path / "evil.go").touch()
        looking = asyncio.create_task(look_again_and_again(host))
        await asyncio.sleep(1.5)  # a burst is over, and NICs are looked for anew
        beside = await replugs(host, 12)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        grown = resident(host) - memory
    assert beside[6] < AS_BEFORE * max(before[6], 0.02), (before, beside)
    assert beside[-2] < AS_BEFORE * max(before[-2], 0.1), (before, beside)
    assert grown < 32 << 20


# --- requests that are costly to read -------------------------------------------------------------
# Becomes another user and sends the same on many connections for some seconds, as fast as it goes.
FLOOD = """
import os, selectors, socket, sys, time
path, uid, how, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
"".encode("idna")  # its module may be in a directory of root's
os.setgroups([]); os.setgid(uid); os.setuid(uid)
post = b"POST /v1/networks HTTP/1.1\\r\\nHost: a\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n"
get = b"GET /v1/nics HTTP/1.1\\r\\nHost: a\\r\\n"
data = {
    "chunks": post + b"1\\r\\nx\\r\\n" * 43_000,
    "headers": get + b"a:\\r\\n" * 3900 + b"\\r\\n",
    "nonsense": get + b"a:\\r\\n" * 3900 + b"\\xff\\r\\n\\r\\n",
}[how]
end, sent = time.monotonic() + seconds, {}
with selectors.DefaultSelector() as waiting:
    while time.monotonic() < end:
        while len(sent) < 200:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(0.2)
            try:
                sock.connect(path)
            except OSError:
                break
            sock.setblocking(False)
            sent[sock] = 0
            waiting.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        for key, events in waiting.select(0.01):
            sock = key.fileobj
            try:
                if events & selectors.EVENT_READ and not sock.recv(65536):
                    raise ConnectionError
                sent[sock] += sock.send(data[sent[sock] % len(data):])
            except BlockingIOError:
                pass
            except OSError:
                waiting.unregister(sock)
                sock.close()
                del sent[sock]
        time.sleep(0.001)
"""


@pytest.mark.parametrize("how", ["chunks", "headers", "nonsense"])
async def test_requests_that_are_costly_to_read_hold_only_their_sender_up(
    host: Host, lab: Lab, how: str
) -> None:
    await ready(host, lab)
    await slowest_of(host, 4)
    said = len(host.said())
    command = [sys.executable, "-c", FLOOD, str(host.socket), str(STRANGER), how, "8"]
    child = await asyncio.create_subprocess_exec(*command)
    try:
        await asyncio.sleep(1.0)
        async with asyncio.timeout(6):
            assert await slowest_of(host, 8) < ANSWER_TIMEOUT_S
        assert len(host.said()) - said < 16 << 10, "nor do they fill the log"
    finally:
        child.kill()
        await child.wait()


async def test_a_qemu_that_tells_slowly_of_many_nics_holds_up_no_list_and_can_be_removed(
    host: Host, lab: Lab, tmp_path: Path
) -> None:
    await ready(host, lab)
    async with hostile_qemu(tmp_path / "evil.qmp", "many NICs"), Client(host.socket) as links:
        await links.add_vm("evil", tmp_path / "evil.qmp")
        (tmp_path / "evil.go").touch()
        await asyncio.sleep(1.5)  # NICs are looked for anew
        for _ in range(3):
            async with asyncio.timeout(2 * ANSWER_TIMEOUT_S):
                assert NIC in {str(nic.ref) for nic in await links.nics()}
        async with asyncio.timeout(15):  # SCAN_TIMEOUT_S, and some
            await links.remove_vm("evil")
        (tmp_path / "evil.go").unlink()
        await links.add_vm("evil", tmp_path / "evil.qmp")
        (tmp_path / "evil.go").touch()
        await asyncio.sleep(1.5)
        async with asyncio.timeout(2 * ANSWER_TIMEOUT_S):
            await links.nics()
        began = time.monotonic()
        assert await host.stop() == 0
        assert time.monotonic() - began < 8


async def test_a_qemu_that_always_has_other_nics_fills_no_list_and_no_memory(
    host: Host, lab: Lab, tmp_path: Path
) -> None:
    async with hostile_qemu(tmp_path / "evil.qmp", "other NICs"), Client(host.socket) as links:
        await links.add_vm("evil", tmp_path / "evil.qmp")
        (tmp_path / "evil.go").touch()
        most, end = 0, time.monotonic() + 16
        while time.monotonic() < end:
            most = max(most, len(await links.nics()))
            await asyncio.sleep(0.3)
        assert 90 <= most <= 256


async def test_what_waits_for_a_slow_qemu_holds_up_no_removal_and_no_stop(
    host: Host, lab: Lab, tmp_path: Path
) -> None:
    await ready(host, lab)
    slow = tmp_path / "evil.go"
    async with hostile_qemu(tmp_path / "evil.qmp", "slow NIC"), Client(host.socket) as links:

        async def queue_up() -> list[asyncio.Task[Any]]:
            """A verb in the middle of its steps, and seven that wait for it."""
            await links.add_vm("evil", tmp_path / "evil.qmp")
            slow.touch()
            waiting = [asyncio.create_task(links.plug("evil/net0", "blue")) for _ in range(8)]
            await asyncio.sleep(1.0)
            return waiting

        waiting = await queue_up()
        began = time.monotonic()
        removing = asyncio.create_task(links.remove_vm("evil"))
        ended, _ = await asyncio.wait(waiting, timeout=1.0)
        assert {getattr(each.exception(), "code", None) for each in ended} == {"being-removed"}
        assert len(ended) == 7, "the first is in the middle of its steps"
        assert "evil/net0: VM evil is being removed" in str(ended.pop().exception())
        assert await removing
        assert time.monotonic() - began < 4 * 2.5, "two commands of the first, one of the removal"
        await asyncio.gather(*waiting, return_exceptions=True)

        slow.unlink()
        waiting = await queue_up()
        began = time.monotonic()
        stopping = asyncio.create_task(host.stop())
        ended, _ = await asyncio.wait(waiting, timeout=1.0)
        assert not ended, "they ask again until another service listens"
        assert await stopping == 0
        assert time.monotonic() - began < 4 * 2.5
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert host.said().count("stopping: ") == 7, host.said()


# --- file systems that do not answer --------------------------------------------------------------
async def test_a_path_on_a_file_system_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, lab: Lab
) -> None:
    rule = f'[[access.rules]]\nuser = {STRANGER}\nverbs = ["add_vm"]\nnics = ["*"]\n'
    limits = "[limits]\nmonitor_seconds = 2.0\n"
    async with serving(tmp_path, limits + rule) as host:
        await ready(host, lab)
        mount = tmp_path / "mount"
        mount.mkdir(mode=0o755)
        with silent_fuse(mount):
            adds: list[tuple[str, str, object]] = [
                ("POST", "/v1/vms", {"name": f"evil{number}", "qmp": f"{mount}/{number}"})
                for number in range(12)
            ]
            adding = [asyncio.create_task(as_stranger(host, [each])) for each in adds]
            async with Client(host.socket) as links:
                roots = asyncio.create_task(links.add_vm("roots", mount / "qmp"))
                await asyncio.sleep(1.0)
                assert await slowest_of(host, 6) < ANSWER_TIMEOUT_S
                with pytest.raises(MonitorUnreachable, match="has not answered within 5 s"):
                    await roots
            for ((status, problem),) in await asyncio.gather(*adding):
                assert (status, problem["code"]) == (424, "monitor-unreachable"), problem
            threads = len(list(Path(f"/proc/{pid_of(host)}/task").iterdir()))
            assert threads < 30, "those that are stuck, and those that all share"


async def test_a_monitor_whose_file_system_stops_answering_holds_up_nobody_and_no_start(
    tmp_path: Path, lab: Lab
) -> None:
    limits = "[limits]\nmonitor_seconds = 2.0\n"
    async with serving(tmp_path, limits) as host:
        await ready(host, lab)
        mount = tmp_path / "mount"
        mount.mkdir(mode=0o755)
        async with hostile_qemu(mount / "evil.qmp", "hang up"), Client(host.socket) as links:
            await links.add_vm("evil", mount / "evil.qmp")
            (mount / "evil.go").touch()
            with silent_fuse(mount):  # over the socket
                await asyncio.sleep(1.0)
                await links.vms()  # it is found not to answer, once
                assert await slowest_of(host, 6) < ANSWER_TIMEOUT_S
                assert {vm.name: vm.state for vm in await links.vms()}["evil"] is VmState.UNKNOWN
                guest = await lab.guest("web2", boot=False, add=False)
                await links.add_vm("web2", guest.qmp_path)
            await host.stop()
            with silent_fuse(mount):
                host.start()
                await host.ready()
                async with asyncio.timeout(20):
                    assert await slowest_of(host, 6) < ANSWER_TIMEOUT_S


def pid_of(host: Host) -> int:
    assert host.child
    return host.child.pid
