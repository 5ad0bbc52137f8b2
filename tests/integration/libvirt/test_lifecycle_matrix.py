"""Every step of a libvirt guest's life, with cables in before, and looked at from all sides after.

One row after the other on one guest under one libvirtd. What happened to process, guest and cables
is written to build/lifecycle.md, and has to be what docs/lifecycle.md says.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from linkmgr.model import LinkState
from linkmgr.testing.process import execute, until
from tests.integration.domain_lab import DomainLab, domain_lab
from tests.integration.lab import SUBNETS
from tests.integration.libvirtd import DomainGuest, tiny_domain

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[3]
WRITTEN = ROOT / "build" / "lifecycle.md"
DOCUMENT = ROOT / "docs" / "lifecycle.md"
VM = "web1"
NET0, NET1 = f"{VM}/ua-net0", f"{VM}/ua-net1"
#: What the stored XML asks for, and what the operator has plugged since.
STORED = {"ua-net0": "blue", "ua-net1": "green"}
LIVE = {"ua-net0": "red", "ua-net1": "green"}
ETH = {"ua-net0": "eth0", "ua-net1": "eth1"}
HEAD = """\
| what happens | QEMU | the guest | its cables | |
|---|---|---|---|---|
"""


Version = tuple[int, int]


def _version() -> Version:
    """Of the libvirtd that the tests run."""
    try:
        said = subprocess.run(["libvirtd", "--version"], capture_output=True, check=False).stdout
    except FileNotFoundError:
        return 0, 0
    found = re.search(rb"(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


LIBVIRT = _version()
EXTERNAL: Version = (9, 10)  # about when libvirt learned to revert to external snapshots
REVERT = "`virsh snapshot-revert` to an external snapshot"


class Cables(StrEnum):
    """What became of the cables."""

    STAY = "stay"
    AGAIN = "plugged again, as its live XML asks"
    STORED = "plugged, as its stored XML asks"
    DONE = "the plug is done, the others stay"
    FREED = "freed"


#: What the NICs are on afterwards.
AFTER = {Cables.STAY: LIVE, Cables.AGAIN: LIVE, Cables.STORED: STORED, Cables.DONE: STORED}


@dataclass(frozen=True)
class State:
    """What there is at one time. ``boot`` and ``changes`` are what the guest says."""

    pid: int
    boot: str
    changes: tuple[int, ...]
    attachments: tuple[str, ...]


@dataclass
class Matrix:
    """The guest, and how it was before."""

    lab: DomainLab
    guest: DomainGuest
    before: State | None = None
    spoken_to: int | None = None  #: the process whose guest is connected

    async def virsh(self, *words: str) -> str:
        return await self.lab.libvirtd.virsh(*words, timeout=60)

    async def runs(self) -> bool:
        return (await self.lab.libvirtd.try_virsh("domstate", VM)).output.strip() == "running"

    async def plugged(self) -> None:
        """See to it that the guest runs, with the cables of `LIVE`."""
        if not await self.runs():
            await self.virsh("start", VM)
            await self.lab.settled(VM, STORED)
        for nic in (NET0, NET1):
            await self.lab.links.plug(nic, LIVE[nic.partition("/")[2]])

    async def look(self, cables: dict[str, str], *, traffic: bool) -> State:
        """Compare everybody's idea of the cables, and say how things are."""
        nics = await self.lab.agrees(VM, cables)
        if self.spoken_to != self.guest.pid:
            await self.guest.connect()
            self.spoken_to = self.guest.pid
        for eth in ETH.values():
            await self.guest.wait_carrier(eth, up=True)
        if traffic:
            await self.lab.reaches(self.guest, set(cables.values()))
        boot = await self.guest.run("cat /proc/sys/kernel/random/boot_id", check=True)
        made = [nics[alias].connection for alias in cables]
        return State(
            self.guest.pid,
            boot.output,
            tuple([await self.guest.carrier_changes(eth) for eth in ETH.values()]),
            tuple(each.attachment for each in made if each),
        )

    async def rebooted(self) -> None:
        """Wait until the guest has booted anew."""
        await asyncio.sleep(0.7)  # it goes down
        timeouts = chain([12.0], repeat(20.0))

        async def asked() -> bool:
            try:  # what is said to a guest that goes down is lost, to one that boots waits
                await self.guest.connect(timeout=next(timeouts))
                boot = await self.guest.run("cat /proc/sys/kernel/random/boot_id", timeout=2)
            except TimeoutError:
                return False
            return self.before is not None and boot.output not in ("", self.before.boot)

        await until(asked, timeout=60, what="another boot", interval=0.2)

    async def ended(self) -> None:
        """Wait until the guest has ended, and nothing is left of it."""

        async def asked() -> bool:
            return not await self.runs()

        await until(asked, timeout=20, what="the guest's end")
        await self.guest.stop()
        await self.lab.nothing_left(VM)


Does = Callable[[Matrix], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Row:
    """One step.

    :param what: happens.
    :param does: makes it happen.
    :param cables: what is to become of them.
    :param remark: for a person.
    :param since: the first libvirt that does so; `until`: the first that does not any more.
    :param differs: what docs/compatibility.md calls it, if it is not so on all versions.
    """

    what: str
    does: Does
    cables: Cables = Cables.STAY
    remark: str = ""
    since: Version = (0, 0)
    until: Version = (999, 0)
    differs: str = ""

    def holds(self, libvirt: Version) -> bool:
        """Whether it is so with a libvirt."""
        return self.since <= libvirt < self.until

    def __str__(self) -> str:
        return self.what

    def told(self, process: str, guest: str) -> str:
        """Its line in the table."""
        said = f"| {self.what} | {process} | {guest} | {self.cables} |"
        return f"{said} {self.remark} |" if self.remark else f"{said} |"


async def nothing(m: Matrix) -> None:
    """It runs, and that is all."""


async def reboot(m: Matrix) -> None:
    await m.guest.spawn("sleep 0.2; reboot -f")
    await m.rebooted()


async def reset(m: Matrix) -> None:
    await m.virsh("reset", VM)
    await m.rebooted()


async def crash(m: Matrix) -> None:
    await m.guest.spawn("sleep 0.2; echo c >/proc/sysrq-trigger")
    await m.rebooted()
    assert await m.virsh("domstate", "--reason", VM) == "running (crashed)", "libvirt did that"


async def suspend(m: Matrix) -> None:
    await m.virsh("suspend", VM)
    await m.lab.agrees(VM, LIVE)
    await m.virsh("resume", VM)


async def managedsave(m: Matrix) -> None:
    """Also: a link that virsh took down is down when the guest is back."""
    mac = (await m.lab.nics(VM))["ua-net0"].mac
    await m.virsh("domif-setlink", VM, mac, "down")

    async def written() -> bool:
        return 'link="down"' in await m.virsh("metadata", VM, "urn:linkmgr:cables", "--live")

    await until(written, timeout=10, what="the live metadata says so")
    await m.virsh("managedsave", VM)
    await m.ended()
    await m.virsh("start", VM)
    nics = await m.lab.settled(VM, LIVE)
    assert nics["ua-net0"].link is LinkState.DOWN
    assert (await m.virsh("domif-getlink", VM, mac)).endswith("down")
    await m.virsh("domif-setlink", VM, mac, "up")


async def save(m: Matrix) -> None:
    await m.virsh("save", VM, f"{m.lab.libvirtd.root}/lib/saved")
    await m.ended()


async def restored(m: Matrix) -> None:
    await m.virsh("restore", f"{m.lab.libvirtd.root}/lib/saved")


async def restore(m: Matrix) -> None:
    await save(m)
    await restored(m)


async def internal(m: Matrix) -> None:
    await m.virsh("snapshot-create-as", VM, "one")
    await m.lab.agrees(VM, LIVE)
    await m.lab.linkmgr("plug", NET0, "blue")
    await m.virsh("snapshot-revert", VM, "one")
    await m.lab.settled(VM, LIVE)
    await m.virsh("snapshot-delete", VM, "one")


async def external(m: Matrix) -> None:
    await taken(m, "two")
    await m.virsh("snapshot-delete", VM, "two", "--metadata")


async def taken(m: Matrix, name: str) -> None:
    """Take an external snapshot: from now on an overlay is written."""
    overlay = f"vda,file={m.lab.libvirtd.root}/images/{name}.qcow2"
    await m.virsh("snapshot-create-as", VM, name, "--disk-only", "--diskspec", overlay)


async def external_refused(m: Matrix) -> None:
    await taken(m, "three")
    refused = await m.lab.libvirtd.try_virsh("snapshot-revert", VM, "three")
    assert refused.status == 1
    assert "revert to external snapshot not supported yet" in refused.output
    await m.virsh("snapshot-delete", VM, "three", "--metadata")


async def external_reverted(m: Matrix) -> None:
    await taken(m, "three")
    await m.virsh("snapshot-revert", VM, "three")
    await m.ended()
    await m.virsh("snapshot-delete", VM, "three", "--metadata")


async def destroy(m: Matrix) -> None:
    await m.virsh("destroy", VM)
    await m.ended()


async def start(m: Matrix) -> None:
    await m.virsh("start", VM)


async def poweroff(m: Matrix) -> None:
    await m.guest.spawn("sleep 0.2; poweroff -f")
    await m.ended()


async def undefine(m: Matrix) -> None:
    xml = await m.virsh("dumpxml", "--inactive", "--security-info", VM)
    await m.virsh("undefine", VM)
    await m.look(LIVE, traffic=False)
    await m.virsh("destroy", VM)
    await m.lab.nothing_left(VM)
    await m.lab.libvirtd.define(xml)


async def rename(m: Matrix) -> None:
    await destroy(m)
    await m.virsh("domrename", VM, "web9")
    await m.virsh("start", "web9")
    await m.lab.settled("web9", STORED)
    assert not m.lab.kept(VM)
    await m.virsh("destroy", "web9")
    await m.lab.nothing_left("web9")
    await m.virsh("domrename", "web9", VM)
    await m.virsh("start", VM)


async def libvirtd_restart(m: Matrix) -> None:
    await m.lab.libvirtd.restart()


async def libvirtd_kill(m: Matrix) -> None:
    await m.lab.libvirtd.restart(signal.SIGKILL)


async def libvirtd_kill_in_a_plug(m: Matrix) -> None:
    """It goes to blue, libvirtd dies, it is on blue; and back, without libvirtd."""
    lab = m.lab
    await lab.hold_at("switch")
    plug = asyncio.create_task(lab.linkmgr("plug", NET0, "blue"))
    try:
        await lab.held()
        await lab.libvirtd.stop(signal.SIGKILL)
    finally:
        lab.go_on()
    assert "the domain's live XML still asks for what it did before" in (await plug).output
    assert {a: n.connection and n.connection.network for a, n in (await lab.nics(VM)).items()} == (
        STORED
    )
    await lab.reaches(m.guest, set(STORED.values()))
    await lab.libvirtd.start()


async def service_restart(m: Matrix) -> None:
    await m.lab.served.stop()
    await m.lab.served.start()


async def service_kill(m: Matrix) -> None:
    await m.lab.served.stop(signal.SIGKILL)
    await m.lab.served.start()


def in_order(*steps: Does) -> Does:
    """One after the other."""

    async def all_of_them(m: Matrix) -> None:
        for each in steps:
            await each(m)

    return all_of_them


def killed(where: str, does: Does) -> Does:
    """What is done while the service dies there, and is started again at once."""

    async def both(m: Matrix) -> None:
        await m.lab.die_at(where)
        async with asyncio.TaskGroup() as group:
            group.create_task(m.lab.revive())
            group.create_task(does(m))

    return both


def dies(what: str, where: str, first: Does, does: Does, cables: Cables) -> Row:
    """The row of a service that dies there. What is done first is done while it lives."""
    return Row(f"the service is killed {what}", in_order(first, killed(where, does)), cables)


ROWS = (
    Row("reboot from inside", reboot),
    Row("`virsh reset`", reset),
    Row("the guest's kernel panics, `on_crash` is `restart`", crash, remark="with `<panic>`"),
    Row("`virsh suspend`, `resume`", suspend),
    Row(
        "`virsh managedsave`, `start`", managedsave, Cables.AGAIN,
        "in between nothing is left; a link that virsh took down stays so",
    ),
    Row("`virsh save`, `restore`", restore, Cables.AGAIN, "in between nothing is left"),
    Row(
        "`virsh snapshot-create-as` (internal), `snapshot-revert`", internal, Cables.AGAIN,
        "live XML of the snapshot. libvirt takes none of a running guest that has no disk of its "
        "own for it (qcow2)",
    ),
    Row("`virsh snapshot-create-as --disk-only` (external)", external),
    Row(
        "`virsh snapshot-revert` to it, libvirt 9.0", external_refused,
        remark="refused: *revert to external snapshot not supported yet*", until=EXTERNAL,
        differs=REVERT,
    ),
    Row(
        "`virsh snapshot-revert` to it, libvirt 11.3", external_reverted, Cables.FREED,
        "it holds no memory, so the guest is shut off then", since=EXTERNAL, differs=REVERT,
    ),
    Row("poweroff from inside", poweroff, Cables.FREED),
    Row("`virsh destroy`, `start`", in_order(destroy, start), Cables.STORED,
        "in between nothing is left"),
    Row("`virsh undefine` while it runs, `destroy`", undefine, Cables.FREED,
        "they stay until the guest has ended"),
    Row("`virsh destroy`, `domrename`, `start`", rename, Cables.STORED,
        "they are asked for under the new name; nothing is left of the old one"),
    Row("libvirtd is restarted", libvirtd_restart),
    Row("libvirtd is killed", libvirtd_kill),
    Row("libvirtd is killed in the middle of a plug", libvirtd_kill_in_a_plug, Cables.DONE,
        "the live XML could not be written, which the answer says"),
    Row("the service is restarted", service_restart),
    Row("the service is killed", service_kill),
    dies("at the hook's `stopped`", "hook stopped", nothing, destroy, Cables.FREED),
    dies("at the hook's `release`", "hook release", nothing, destroy, Cables.FREED),
    dies("at the hook's `prepare`", "hook prepare", destroy, start, Cables.STORED),
    dies("at the hook's `start`", "hook start", destroy, start, Cables.STORED),
    dies("at the hook's `started`", "hook started", destroy, start, Cables.STORED),
    dies("at `started`, its cable half plugged", "switch", destroy, start, Cables.STORED),
    dies("at the hook's `restore`", "hook restore", save, restored, Cables.AGAIN),
    dies("at the hook's `reconnect`", "hook reconnect", nothing, libvirtd_restart, Cables.STAY),
)  # fmt: skip


def domain(lab: DomainLab) -> str:
    """The guest: two NICs, a disk for snapshots, and a device that tells of a panic."""
    nics = [
        f"<interface type='user'><mac address='52:54:00:00:05:0{n}'/><model type='virtio'/>"
        "</interface>"
        for n in range(2)
    ]
    disk = (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='{lab.libvirtd.root}/images/disk.qcow2'/><target dev='vda' bus='virtio'/>"
        "</disk><panic model='isa'/>"
    )
    words = (
        " ".join(
            f"lm.ip.eth{nic}=10.{SUBNETS[name]}.0.2/24"
            for nic, name in enumerate(("blue", "green"))
        )
        + f" lm.ip.eth0=10.{SUBNETS['red']}.0.2/24"
    )
    return tiny_domain(lab.libvirtd, VM, nics, cmdline=words, devices=disk)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DomainLab]:
    async with domain_lab(tmp_path_factory.mktemp("matrix")) as made:
        disk = f"{made.libvirtd.root}/images/disk.qcow2"
        await execute(["qemu-img", "create", "-q", "-f", "qcow2", disk, "16M"])
        await made.libvirtd.define(domain(made))
        await made.prepare(VM)
        for nic, network in STORED.items():
            await made.linkmgr("plug", f"{VM}/{nic}", network, "--config")
        yield made
        await made.libvirtd.try_virsh("destroy", VM)
        await made.nothing_left(VM)


@pytest.fixture(scope="module")
def seen() -> list[str]:
    """The table so far."""
    return []


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Instead of the one of conftest: cables stay in from row to row."""
    before = {path.name for path in Path("/sys/class/net").iterdir()}
    yield
    assert {path.name for path in Path("/sys/class/net").iterdir()} == before


@pytest.mark.parametrize("row", [row for row in ROWS if row.holds(LIBVIRT)], ids=str)
async def test_its_cables_are_as_they_should_be_after(
    row: Row, lab: DomainLab, seen: list[str], differs: Callable[[str, str], None]
) -> None:
    async with DomainGuest(lab.libvirtd, VM) as guest:
        m = Matrix(lab, guest)
        await m.plugged()
        m.before = before = await m.look(LIVE, traffic=False)
        await row.does(m)
        if row.differs:
            differs(row.differs, row.remark)
        if row.cables is Cables.FREED:
            await lab.nothing_left(VM)
            seen.append(row.told("ends", "ends"))
            return
        now = await m.look(AFTER[row.cables], traffic=True)
    same = now.attachments == before.attachments
    assert same is (row.cables is Cables.STAY)
    process = "the same" if now.pid == before.pid else "a new one"
    if now.boot != before.boot:
        guest_said = "boots"
    elif now.changes == before.changes:
        guest_said = "runs on, sees nothing"
    else:
        guest_said = "runs on, sees its carrier go and come"
    seen.append(row.told(process, guest_said))


async def test_the_table_in_the_documentation_is_what_was_seen(seen: list[str]) -> None:
    table = HEAD + "\n".join(seen) + "\n"
    WRITTEN.parent.mkdir(exist_ok=True)
    WRITTEN.write_text(table)
    others = {row.what for row in ROWS if not row.holds(LIBVIRT)}  # of another libvirt
    if len(seen) < len(ROWS) - len(others):
        pytest.skip("not all rows were run, or well")
    begin, end = "<!-- written by the test -->\n", "<!-- end -->"
    documented = DOCUMENT.read_text().partition(begin)[2].partition(end)[0]
    lines = documented.splitlines(keepends=True)
    left = [line for line in lines if line.split("|")[1].strip() not in others]
    assert len(lines) - len(left) == len(others)
    assert "".join(left) == table, f"put {WRITTEN} between the marks in {DOCUMENT}, if it is right"
