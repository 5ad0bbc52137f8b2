"""libvirt's hook: it hands everything over, waits where it matters, and always ends in time."""

from __future__ import annotations

import ast
import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from linkmgr.libvirt.xml.document import MAX_BYTES
from tests.hook_copy import HOOK, write_hook
from tests.unit.hook_lab import XML, HookLab, Manner, full, http

HOOK_TIMEOUT_S = 0.4  #: seconds that the tests' configuration gives the hook
SLACK = 2.0  #: seconds that a busy machine may take beside
OPEN = f"[hook]\nseconds = {HOOK_TIMEOUT_S}\n"
CLOSED = f"{OPEN}fail_closed = true\n"
YES, NO = http({"ok": True, "said": "fine"}), http({"ok": False, "said": "no cable for web1"})
OPERATIONS = ["prepare", "start", "started", "stopped", "release", "migrate", "restore",
              "reconnect", "attach", "brew-tea"]  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path) -> HookLab:
    return HookLab(tmp_path)


# --- what is handed over ---


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_operation_is_handed_over_with_its_xml(lab: HookLab, operation: str) -> None:
    async with lab.service(lab.answering(YES)):
        ran = await lab.run("web1", operation, "begin", "-")
        await lab.something_heard()
    assert (ran.status, ran.out, ran.err) == (0, b"", "")
    assert lab.heard == [
        {"operation": operation, "sub_operation": "begin", "extra": "-", "name": "web1",
         "xml": XML.decode()}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "config", "waits"),
    [
        *((each, OPEN, each in ("started", "migrate")) for each in OPERATIONS),
        ("prepare", CLOSED, True),
        ("prepare", None, False),
        ("release", CLOSED, False),
    ],
)
async def test_it_waits_only_where_it_matters(
    lab: HookLab, operation: str, config: str | None, waits: bool
) -> None:
    answered = asyncio.Event()

    async def manner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await lab.hear(reader)
        await asyncio.sleep(0.2)
        answered.set()
        writer.write(YES)

    async with lab.service(manner):
        ran = await lab.run("web1", operation, "begin", "-", config=config)
        assert answered.is_set() is waits
        await lab.something_heard()
    assert (ran.status, ran.out, ran.err) == (0, b"", "")


@pytest.mark.parametrize(
    "name",
    ["50-linkmgr.dpkg-dist", "50-linkmgr.dpkg-new", "50-linkmgr.dpkg-old", "50-linkmgr.ucf-dist",
     "50-linkmgr~", "50-linkmgr.bak", "50-linkmgr-old", "#50-linkmgr#", "qemu.dpkg-dist"],
)  # fmt: skip
@pytest.mark.parametrize("config", [OPEN, CLOSED])
async def test_a_copy_that_an_upgrade_has_left_does_nothing(
    lab: HookLab, name: str, config: str
) -> None:
    async with lab.service(lab.answering(NO)):
        for operation in ("prepare", "started", "migrate"):
            ran = await lab.run("web1", operation, "begin", "-", config=config, name=name)
            assert (ran.status, ran.out, ran.err, lab.heard) == (0, b"", "", [])


@pytest.mark.parametrize("name", ["50-linkmgr", "99-linkmgr", "qemu"])
async def test_it_may_have_another_number_or_be_the_only_hook(lab: HookLab, name: str) -> None:
    async with lab.service(lab.answering(YES)):
        await lab.run("web1", "started", "begin", "-", name=name)
        await lab.something_heard()


@pytest.mark.parametrize("size", [0, 1, 100_000, MAX_BYTES])
async def test_xml_of_any_size_arrives_whole(lab: HookLab, size: int) -> None:
    xml = (b"<domain>" + b"\n<a b='c'/>" * (size // 10))[:size]
    async with lab.service(lab.answering(YES)):
        ran = await lab.run("web1", "started", "begin", "-", xml=xml, config="[hook]\nseconds=9\n")
    assert (ran.status, ran.out, ran.err) == (0, b"", "")
    assert lab.heard[0]["xml"] == xml.decode()


@pytest.mark.parametrize(
    ("operation", "config", "status"),
    [
        ("prepare", OPEN, 0), ("prepare", CLOSED, 1), ("start", OPEN, 0), ("started", OPEN, 0),
        ("migrate", OPEN, 1), ("stopped", OPEN, 0),
    ],
)  # fmt: skip
async def test_xml_that_is_too_long_is_not_handed_over_and_starts_as_the_configuration_says(
    lab: HookLab, operation: str, config: str, status: int
) -> None:
    async with lab.service(lab.answering(YES)):
        ran = await lab.run("web1", operation, "begin", "-", xml=b" " * (3 << 20), config=config)
    assert (ran.status, ran.out, lab.heard) == (status, b"", [])
    told = f"its XML is longer than {MAX_BYTES} bytes" in ran.err
    assert told is (status == 1 or operation == "started")


async def test_what_is_not_utf_8_is_replaced_and_what_is_stays(lab: HookLab) -> None:
    xml = "<name>\u00fc\U0001f600\0\x1b</name>".encode() + b"\xff\xed\xa0\x80"
    async with lab.service(lab.answering(YES)):
        ran = await lab.run(b"w\xff\xfcb\xc3\xbc", "started", "begin", b"\xff", xml=xml)
    assert (ran.status, ran.out, ran.err) == (0, b"", "")
    (heard,) = lab.heard
    assert heard["name"] == "w\ufffd\ufffdb\u00fc"
    assert heard["extra"] == "\ufffd"
    assert heard["xml"].startswith("<name>\u00fc\U0001f600\0\x1b</name>\ufffd")


@pytest.mark.parametrize("words", [(), ("web1",), ("web1", ""), ("", "started"), ("a",) * 9])
async def test_however_it_is_called_it_ends_with_0(lab: HookLab, words: tuple[str, ...]) -> None:
    async with lab.service(lab.answering(YES)):
        ran = await lab.run(*words)
        if len(words) > 1 and words[1]:
            await lab.something_heard()
    assert (ran.status, ran.out, ran.err) == (0, b"", "")
    assert len(lab.heard) == (len(words) > 1 and bool(words[1]))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "</dev/null"])
async def test_closed_channels_do_no_harm(lab: HookLab, closed: str) -> None:
    shell = ["sh", "-c", f'exec "$0" "$@" {closed}']
    async with lab.service(lab.answering(YES)):
        ran = await lab.run("web1", "started", "begin", "-", before=shell, xml=b"")
    assert (ran.status, ran.out) == (0, b"")
    assert lab.heard[0]["xml"] == ""
    lab.socket.unlink(missing_ok=True)
    ran = await lab.run("web1", "prepare", "begin", "-", before=shell, xml=b"", config=CLOSED)
    assert (ran.status, ran.out) == (1, b"")


async def test_an_xml_that_never_ends_is_given_up(lab: HookLab) -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"<domain>")
        for config, status in ((OPEN, 0), (CLOSED, 1)):
            process = await asyncio.create_subprocess_exec(
                lab.hook(config), "web1", "prepare", "begin", "-", stdin=read
            )
            async with asyncio.timeout(HOOK_TIMEOUT_S + SLACK):
                assert await process.wait() == status
    finally:
        os.close(read)
        os.close(write)


# --- services that fail, each in its own way ---


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def read_and_never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1 << 16):
        pass
    await asyncio.sleep(60)


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    for byte in YES * 100:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * (1 << 16))
        await writer.drain()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """At once."""


def saying(answer: bytes) -> Manner:
    async def manner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return manner


FAILURES: dict[str, tuple[Manner, str]] = {
    "accepts, and never reads": (never, "did not answer within 0.4 s"),
    "reads, and never answers": (read_and_never_answer, "did not answer within 0.4 s"),
    "drips": (drip, "did not answer within 0.4 s"),
    "never ends its answer": (pour, "no answer that can be understood"),
    "hangs up": (hang_up, "hung up without an answer"),
    "hangs up in its answer": (saying(YES[:-5]), ""),
    "speaks something else": (saying(b"220 mail ESMTP\r\n"), "no answer that can be understood"),
    "fails": (saying(http({"detail": "out of order"}, "500 Oops")), "out of order"),
    "fails without a word": (saying(http(b"", "503 Busy")), "no answer that can be understood"),
    "says ok with a failure": (saying(http({"ok": True}, "500 Oops")), "no answer"),
    "answers something else": (saying(http(["ok"])), "no answer that can be understood"),
    "answers no JSON": (saying(http(b"{'ok'}")), "no answer that can be understood"),
    "says no": (saying(NO), "no cable for web1"),
    "says no in odd letters": (
        saying(http({"ok": False, "said": "\x1b\ud800\n\u00fc"})),
        "???\u00fc",
    ),
    "says something that is not yes": (saying(http({"ok": 1, "said": "one"})), "one"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_whatever_a_service_does_the_hook_ends_in_time_and_with_0(
    lab: HookLab, failure: str
) -> None:
    manner, says = FAILURES[failure]
    big = b"<domain>" * 200_000  # more than the socket takes without a reader
    async with lab.service(manner):
        for operation in ("started", "prepare", "stopped"):
            ran = await lab.run("web1", operation, "begin", "-", config=OPEN, xml=big)
            assert (ran.status, ran.out) == (0, b"")
            assert ran.seconds < HOOK_TIMEOUT_S + SLACK
        if failure != "hangs up in its answer":  # by then it had said yes
            ran = await lab.run("web1", "prepare", "begin", "-", config=CLOSED)
            assert (ran.status, ran.out) == (1, b"")
            assert ran.seconds < HOOK_TIMEOUT_S + SLACK
            assert ran.err.startswith("linkmgr: domain web1 is not started: ")
            assert says in ran.err
            assert ran.err.endswith("says fail_closed\n")


async def test_a_service_that_hangs_costs_the_whole_time_once_and_says_so(lab: HookLab) -> None:
    async with lab.service(never):
        started = await lab.run("web1", "started", "begin", "-", config=OPEN)
        stopped = await lab.run("web1", "stopped", "end", "-", config=OPEN)
    assert started.seconds >= HOOK_TIMEOUT_S
    assert "maybe not yet with its cables" in started.err
    assert stopped.seconds < HOOK_TIMEOUT_S
    assert stopped.err == ""


async def test_without_a_configuration_it_gives_up_after_two_seconds(lab: HookLab) -> None:
    async with lab.service(never):
        ran = await lab.run("web1", "started", "begin", "-")
    assert 2.0 <= ran.seconds < 2.0 + SLACK
    assert (ran.status, ran.out) == (0, b"")


def nobody(path: Path) -> None:
    """Nothing is there."""


def dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def file(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize("make", [nobody, dead, file])
async def test_a_service_that_is_down_costs_nothing_and_says_nothing(
    lab: HookLab, make: Callable[[Path], None]
) -> None:
    make(lab.socket)
    for operation in OPERATIONS:
        ran = await lab.run("web1", operation, "begin", "-", config="[hook]\nseconds = 30\n")
        assert (ran.status, ran.out, ran.err) == (0, b"", "")
        assert ran.seconds < SLACK
    ran = await lab.run("web1", "prepare", "begin", "-", config=CLOSED)
    assert (ran.status, ran.out) == (1, b"")
    assert f"linkmgr's service is not there ({lab.socket}: " in ran.err
    assert "'systemctl start linkmgr'" in ran.err


async def test_a_service_where_too_many_wait_is_given_up_in_time(lab: HookLab) -> None:
    with full(lab.socket):
        for words, config, status in (("started", OPEN, 0), ("prepare", CLOSED, 1)):
            ran = await lab.run("web1", words, "begin", "-", config=config)
            assert (ran.status, ran.out) == (status, b"")
            assert HOOK_TIMEOUT_S <= ran.seconds < HOOK_TIMEOUT_S + SLACK


async def test_strangers_who_fill_the_queue_of_the_socket_for_all_keep_nothing_from_root(
    lab: HookLab,
) -> None:
    with full(lab.socket):
        async with lab.service(lab.answering(YES), "admin.sock"):
            ran = await lab.run("web1", "prepare", "begin", "-", config=CLOSED)
    assert (ran.status, ran.err) == (0, "")
    assert len(lab.heard) == 1


async def test_a_socket_path_that_cannot_be_is_no_service(lab: HookLab) -> None:
    script = write_hook(lab.folder / "hook", socket="/" + "x" * 200)
    process = await asyncio.create_subprocess_exec(script, "web1", "started", "begin", "-")
    assert await process.wait() == 0


# --- the configuration ---


@pytest.mark.parametrize(
    ("config", "closed"),
    [
        ("[hook]\nfail_closed = true", True),
        ("hook.fail_closed = true", True),
        ("hook = { fail_closed = true, seconds = 1 }", True),
        ('["\\u0068ook"]\nfail_closed = true', True),
        ("[hook]\nfail_closed = true\nseconds = nan", True),
        ("[hook]\nfail_closed = true\nseconds = 'two'", True),
        ("[hook]\n fail_closed\t=  true # please\n[access\n", True),
        ("[hook]\nfail_closed = false", False),
        ("[hook]\nfail_closed = 'true'", False),
        ("[hook]\n# fail_closed = true", False),
        ("[access]\nfail_closed = true", False),
        ("hook = 'fail_closed'", False),
        ("[hook", False),
        ("", False),
        (None, False),
    ],
)
async def test_only_a_configuration_that_asks_for_it_keeps_a_domain_from_starting(
    lab: HookLab, config: str | None, closed: bool
) -> None:
    ran = await lab.run("web1", "prepare", "begin", "-", config=config)
    assert (ran.status, ran.out) == (int(closed), b"")
    for operation in ("start", "started", "reconnect", "restore", "migrate", "stopped", "release"):
        assert (await lab.run("web1", operation, "begin", "-", config=config)).status == 0


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (YES, 0),
        (NO, 1),
        (http({"ok": False}), 1),
        (http({"detail": "a fault"}, "500 Internal Server Error"), 0),
        (http({"detail": "not yours"}, "403 Forbidden"), 0),
        (http(b"nonsense"), 0),
        (http([1]), 0),
        (b"", 0),
        (None, 0),  # never answers
    ],
)
@pytest.mark.parametrize("config", [OPEN, CLOSED])
async def test_a_guest_comes_from_another_host_unless_the_service_says_no(
    lab: HookLab, answer: bytes | None, status: int, config: str
) -> None:
    async with lab.service(lab.answering(answer or YES, 0 if answer is not None else 60)):
        ran = await lab.run("web1", "migrate", "begin", "-", config=config)
    assert (ran.status, ran.out) == (status, b"")
    if answer == NO:
        assert ran.err == "linkmgr: domain web1 cannot come to this host: no cable for web1\n"
    assert ran.seconds < HOOK_TIMEOUT_S + SLACK


async def test_once_the_package_is_removed_nothing_is_asked_for_any_more(lab: HookLab) -> None:
    assert (await lab.run("web1", "prepare", "begin", "-", config=CLOSED)).status == 1
    (lab.folder / "linkmgr").unlink()
    removed = await asyncio.create_subprocess_exec(
        lab.folder / "hook", "web1", "prepare", "begin", "-",
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await removed.communicate()
    assert said == b""
    assert removed.returncode == 0


@pytest.mark.parametrize(
    ("seconds", "at_least", "at_most"), [("0.001", 0.1, 0.5), ("-1", 2.0, 3.0), ("0.3", 0.3, 1.0)]
)
async def test_seconds_are_kept_within_reason(
    lab: HookLab, seconds: str, at_least: float, at_most: float
) -> None:
    async with lab.service(never):
        ran = await lab.run("web1", "started", "begin", "-", config=f"[hook]\nseconds={seconds}")
    assert at_least <= ran.seconds < at_most + SLACK


async def test_a_session_libvirt_is_not_the_services_business(lab: HookLab) -> None:
    async with lab.service(saying(http({"detail": "uid 1000 may not"}, "403 Forbidden"))):
        for operation in ("prepare", "started"):
            ran = await lab.run("web1", operation, "begin", "-", config=CLOSED)
            assert (ran.status, ran.out, ran.err) == (0, b"", "")


# --- how it is made ---


def test_it_needs_nothing_but_the_standard_library() -> None:
    names = set()
    for node in ast.walk(ast.parse(HOOK.read_text())):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    assert names <= sys.stdlib_module_names
    assert HOOK.read_text().startswith("#!/usr/bin/python3 -IS\n")
    assert os.access(HOOK, os.X_OK)


async def test_it_loads_little_to_start_fast(lab: HookLab) -> None:
    async with lab.service(lab.answering(YES)):
        script = lab.hook("[access]\n")
        words = ["-I", "-S", "-X", "importtime", str(script), "web1", "started", "begin", "-"]
        process = await asyncio.create_subprocess_exec(
            "/usr/bin/python3", *words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, said = await process.communicate()
    assert lab.heard
    loaded = {line.rpartition("|")[2].strip() for line in said.decode().splitlines()}
    assert "_socket" in loaded
    assert loaded.isdisjoint({"socket", "json", "re", "tomllib", "http", "typing", "subprocess"})
