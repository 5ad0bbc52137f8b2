"""libvirt's hook with domains whose author means harm, beside the real service and its guests."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Mapping
from pathlib import Path

from linkmgr import Client
from linkmgr.errors import BadMetadata, CannotPrepare
from linkmgr.libvirt.xml.desired_cables import desired_cables_of
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.monitor import find_leak
from linkmgr.text.untrusted import SENTENCE_LIMIT
from tests.corpus.hostile import HURTS
from tests.integration.cli.test_cli import Host
from tests.integration.lab import Lab
from tests.integration.service.test_hostile import NIC, pid_of, ready, serving
from tests.own_time import own_time
from tests.unit.hook_lab import HookLab, Ran
from tests.unit.prepare_lab import PLAIN

AT_ONCE = 4  #: hooks, as of guests that start together
HOOK_S = 2.0  #: the hook's own deadline where no configuration says another
SLACK = 3.0  #: seconds that a process may take besides, on a busy machine
#: Seconds in which others are answered, without those in which no processor was free.
ANSWER_TIMEOUT_S = 1.0
MEMORY = 96 << 20  #: bytes that the service may take for so many requests of a mebibyte
PATIENT = "[hook]\nseconds = 20\n"  #: a refusal is not to be a deadline
CLOSED = PATIENT + "fail_closed = true\n"

DOCUMENTS: Mapping[str, bytes] = {
    **{name: hurt(HURTS["prepared"](PLAIN)) for name, hurt in HURTS.items()},
    "nothing": b"",
    "words": b"it was a good domain",
    "64 MiB": PLAIN.replace(b"</name>", b"</name>" + b" " * (64 << 20)),
    "NULs": b"\0" * (1 << 20),
    "not UTF-8": b"\xff" * (1 << 20),
}
#: What is called for them: with fail_closed, and without.
CALLS = [
    *((name, "prepare") for name in DOCUMENTS),
    *((name, "started") for name in [*DOCUMENTS][::2]),
    *((name, "migrate") for name in [*DOCUMENTS][1::4]),
]


async def test_hostile_domains_end_the_hook_as_promised_and_cost_others_nothing(
    tmp_path: Path, lab: Lab
) -> None:
    ran: dict[tuple[str, str], Ran] = {}
    todo = iter(CALLS)

    async def call(hooks: HookLab) -> None:
        for name, operation in todo:
            config = {"prepare": CLOSED, "migrate": PATIENT}.get(operation)
            ran[name, operation] = await hooks.run(
                "web2", operation, "begin", "-", config=config, xml=DOCUMENTS[name]
            )

    async with serving(tmp_path) as host, Client(host.socket) as links:
        await ready(host, lab)
        before, longest = _peak(host), 0.0
        calling = [asyncio.create_task(call(_hooks(host, str(n)))) for n in range(AT_ONCE)]
        for network in itertools.cycle(("red", "blue")):
            if all(each.done() for each in calling):
                break
            began = own_time(pid_of(host), os.getpid())
            assert (await links.plug(NIC, network, notify="silent")).changed
            longest = max(longest, own_time(pid_of(host), os.getpid()) - began)
        await asyncio.gather(*calling)
        grown = _peak(host) - before
    assert longest < ANSWER_TIMEOUT_S
    assert grown < MEMORY
    for (name, operation), each in ran.items():
        refused = _is_refused(DOCUMENTS[name])
        assert each.status == (refused and operation != "started"), (name, operation, each)
        assert bool(each.err) == refused, (name, operation, each)
        assert each.err.count("\n") == refused, (name, operation, each)
        assert len(each.err) < 5 * SENTENCE_LIMIT, (name, operation)
        assert each.out == b"", "libvirt would take it for XML"
        if operation == "started":
            assert each.seconds < HOOK_S + SLACK, name


def _hooks(host: Host, name: str) -> HookLab:
    """Hooks that ask the service, each with a configuration of its own."""
    folder = host.folder / f"hooks{name}"
    folder.mkdir()
    (folder / "lm.sock").symlink_to(host.socket)
    return HookLab(folder)


def _is_refused(xml: bytes) -> bool:
    """Whether a domain is one that is not to be started as it is."""
    try:
        document = Document(xml.decode(errors="replace").encode())  # as JSON has it
        desired_cables_of(document)
    except (CannotPrepare, BadMetadata):
        return True
    return find_leak(document) is not None or document.root.find("uuid") is None


def _peak(host: Host) -> int:
    """Bytes of memory that the service had at most."""
    status = Path(f"/proc/{pid_of(host)}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10
