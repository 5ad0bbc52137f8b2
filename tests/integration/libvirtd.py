"""A private libvirtd: a real one, in the sandbox, with directories of its own; gone at the end.

What it writes to /etc/libvirt, /var/{lib,log,cache}/libvirt and /run lies on a tmpfs, which is
seen from here and from inside; see `Libvirtd`. Several can run at once. Not for a system with
systemd inside: there is no dbus, no udev, no virtlogd.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn, Self
from xml.sax.saxutils import quoteattr

from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.monitor import in_schema_order
from linkmgr.testing import Guest, in_sandbox
from linkmgr.testing.guest import (
    CHANNELS,
    KERNEL_CMDLINE,
    MEMORY_MIB,
    GuestGone,
    GuestTimeout,
    _Stream,
    images,
)
from linkmgr.testing.process import Child, Result, execute, finish, until

KEEPER = Path(__file__).with_name("libvirtd_keeper.py")

#: What a libvirtd of this run has found out about QEMU: files of its cache, which it checks itself.
_capabilities: dict[str, str] = {}


class Libvirtd:
    """A libvirtd that runs.

    :param root: a directory of this side. ``root/run`` is its ``/run``, ``root/etc`` its
        ``/etc/libvirt``; ``root/lib``, ``root/log``, ``root/cache`` are its directories in /var.
        So what listens here on ``root/run/linkmgr/qmp.sock`` is dialled by a QEMU of this libvirtd
        under ``/run/linkmgr/qmp.sock``.
    """

    def __init__(self, root: Path, keeper: Child) -> None:
        self.root = root
        self._keeper = keeper

    @property
    def uri(self) -> str:
        """For ``virsh -c`` and libvirt-python, from this side."""
        return f"qemu+unix:///system?socket={self.root}/run/libvirt/libvirt-sock"

    @property
    def pid(self) -> int:
        """Of libvirtd.

        :raise FileNotFoundError: it does not run.
        """
        return int((self.root / "run/libvirtd.pid").read_text())

    @property
    def run(self) -> Path:
        """Its /run."""
        return self.root / "run"

    async def virsh(self, *words: str, timeout: float = 30.0) -> str:
        """Run virsh and return what it says, without newlines at the end.

        :raise ProcessFailed: its status is not 0.
        """
        return (await self.try_virsh(*words, timeout=timeout, check=True)).output.rstrip("\n")

    async def try_virsh(self, *words: str, timeout: float = 30.0, check: bool = False) -> Result:
        """Run virsh and return its status and what it says."""
        argv = ["virsh", "-q", "-c", self.uri, *words]
        return await execute(argv, timeout=timeout, check=check)

    async def define(self, xml: str) -> None:
        """``virsh define``, checked against libvirt's schema."""
        with tempfile.NamedTemporaryFile("wb", suffix=".xml") as file:
            # What libvirt itself prints of a prepared domain is not what its schema allows.
            file.write(in_schema_order(Document(xml.encode())).source)
            file.flush()
            await self.virsh("define", "--validate", file.name)

    async def hmp(self, domain: str, command: str) -> str:
        """A command of QEMU's human monitor, through libvirt."""
        said = await self.virsh("qemu-monitor-command", "--hmp", domain, command)
        return said.replace("\r\n", "\n")

    async def start(self) -> None:
        """Start libvirtd, and wait until it answers and has its guests again."""
        self._keeper.signal(signal.SIGUSR1)
        await until(self._answers, timeout=20, what="libvirtd", interval=0.02)
        for domain in (await self.virsh("list", "--name")).split():
            # It waits its turn behind the reconnection. libvirt 9.0 fails a destroy before that,
            # though the guest is killed.
            await self.try_virsh("dommemstat", domain)

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """End libvirtd, or kill it; guests run on."""
        pid = self.pid
        os.kill(pid, number)
        await until(lambda: _gone(pid), timeout=20, what="libvirtd's end", interval=0.02)

    async def restart(self, number: int = signal.SIGTERM) -> None:
        """End it, or kill it, and start it again."""
        await self.stop(number)
        await self.start()

    def log(self, domain: str = "") -> str:
        """What a domain's QEMU said, or libvirtd itself."""
        name = f"qemu/{domain}.log" if domain else "libvirtd.log"
        path = self.root / "log" / name
        return path.read_text(errors="replace") if path.exists() else ""

    async def _answers(self) -> bool:
        if self._keeper.status is not None:
            raise ChildProcessError("libvirtd's keeper has ended")
        return (await self.try_virsh("uri", timeout=5)).status == 0


@asynccontextmanager
async def private_libvirtd(
    *, conf: str = "", qemu_conf: str = "", libvirtd: str = "libvirtd"
) -> AsyncIterator[Libvirtd]:
    """Start a private libvirtd; end it with all its guests, and remove all that it wrote.

    :param conf: more lines of libvirtd.conf.
    :param qemu_conf: more lines of qemu.conf.
    """
    assert in_sandbox(), "libvirt makes links: call enter_sandbox() first"
    async with contextlib.AsyncExitStack() as undo:
        root = Path(tempfile.mkdtemp(prefix="lmv-"))  # short: it holds sockets
        undo.callback(root.rmdir)
        await execute(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root)])
        undo.push_async_callback(execute, ["umount", str(root)])
        for name in ("run/netns", "run/lab", "run/linkmgr", "etc/hooks/qemu.d", "lib", "log",
                     "cache", "images"):  # fmt: skip
            (root / name).mkdir(parents=True)
        (root / "run/lab").chmod(0o777)  # QEMU makes its sockets and logs there
        for name in ("vmlinuz", "initramfs.gz"):  # libvirt gives them to another owner
            shutil.copy(images() / name, root / "images" / name)
        (root / "etc/libvirtd.conf").write_text(f'host_uuid = "{uuid.uuid4()}"\n{conf}\n')
        # No virtlogd; and the host's cgroups stay as they are.
        quiet = 'stdio_handler = "file"\ncgroup_controllers = []\n'
        (root / "etc/qemu.conf").write_text(f"{quiet}{qemu_conf}\n")
        output = undo.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        keeper = Child([sys.executable, "-I", str(KEEPER), str(root), libvirtd], output=output)
        undo.push_async_callback(_end, keeper)
        made = Libvirtd(root, keeper)
        try:
            await until(lambda: _ready(made, keeper), timeout=10, what="the keeper")
            if not _kvm_is_for_guests():
                await _learn(made)
            await made.start()
            yield made
        except BaseException as error:
            output.seek(0)
            said = output.read().decode(errors="replace") + made.log()
            error.add_note(f"libvirtd said: {said[-4000:]}")
            raise


def tiny_domain(
    lab: Libvirtd,
    name: str,
    interfaces: Sequence[str] = (),
    *,
    cmdline: str = "",
    devices: str = "",
    more: str = "",
) -> str:
    """The tiny guest of vm-images/ as a domain; `DomainGuest` talks to it.

    :param interfaces: ``<interface>`` elements.
    :param cmdline: words for the guest's init.
    :param devices: more elements in ``<devices>``.
    :param more: more elements in ``<domain>``.
    """
    nics = "\n    ".join(interfaces)
    channels = "\n    ".join(
        f"<channel type='unix'><source mode='bind' path='/run/lab/{name}.shell{number}'/>"
        f"<target type='virtio' name='shell{number}'/></channel>"
        for number in range(CHANNELS + 1)
    )
    words = quoteattr(f"{KERNEL_CMDLINE} lm.hostname={name} {cmdline}".strip())[1:-1]
    return f"""\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid.uuid5(uuid.NAMESPACE_DNS, str(lab.root / name))}</uuid>
  <memory unit='MiB'>{MEMORY_MIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{lab.root}/images/vmlinuz</kernel>
    <initrd>{lab.root}/images/initramfs.gz</initrd>
    <cmdline>{words}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <on_reboot>restart</on_reboot>
  <on_crash>restart</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    {nics}
    <serial type='file'><source path='/run/lab/{name}.console'/></serial>
    {channels}
    <memballoon model='none'/>
    {devices}
  </devices>
  {more}
</domain>
"""


class DomainGuest(Guest):
    """The guest in a `tiny_domain`: a `Station` over the domain's channels.

    It neither starts nor stops the domain. After each start of the domain, `connect` again;
    ``async with`` closes the connections.
    """

    def __init__(self, lab: Libvirtd, name: str) -> None:
        super().__init__(name, nic_args=(), workdir=lab.run / "lab")
        self._lab = lab

    async def __aenter__(self) -> Self:
        return self

    async def connect(self, timeout: float = 60.0) -> None:
        """Connect to the guest's shells, and wait until they answer.

        :raise GuestTimeout: they do not within ``timeout`` seconds.
        """
        await self.stop()
        for number in range(CHANNELS + 1):
            end = socket.socket(socket.AF_UNIX)
            end.setblocking(False)
            stream = _Stream(end)
            self._shells.append(stream)
            end.connect(str(self.workdir / f"{self.name}.shell{number}"))
            await stream.open()
        # A shell that heard of the other side's end when we came is still about to end, and what
        # we say first may go with it: say it until one answers.
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(*(_answers(shell) for shell in self._shells))
        except TimeoutError:
            raise GuestTimeout(f"{self.name}: its shells do not answer") from None
        await self.wait_boot(timeout)

    @property
    def pid(self) -> int:
        """QEMU's process id, from libvirt's own file."""
        return int((self._lab.run / f"libvirt/qemu/{self.name}.pid").read_text())

    async def _gone(self) -> NoReturn:
        raise GuestGone(f"domain {self.name} has ended: {self._lab.log(self.name)[-2000:]}")


async def _answers(shell: _Stream) -> None:
    heard = asyncio.create_task(shell.read())
    try:
        while not heard.done():
            shell.send(b"echo\n")
            await asyncio.wait({heard}, timeout=1)
    finally:
        heard.cancel()


async def _learn(made: Libvirtd) -> None:
    """Let libvirtd ask QEMU what it can do, once for all that are started here.

    QEMU says that it can do KVM also where libvirt-qemu may not open /dev/kvm, so libvirtd 9.0
    mistrusts what it knows and asks anew, most of a second each time: a dozen times to define one
    domain. Without that flag it believes.
    """
    folder = made.root / "cache/qemu/capabilities"
    if not _capabilities:
        await made.start()
        await made.virsh("domcapabilities", "--virttype", "qemu")
        await made.stop()
        for path in folder.glob("*.xml"):
            _capabilities[path.name] = path.read_text().replace("<flag name='kvm'/>", "")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _capabilities.items():
        (folder / name).write_text(text)


def _kvm_is_for_guests() -> bool:
    """Whether the user that QEMU runs as may open /dev/kvm."""
    try:
        found = Path("/dev/kvm").stat()
        user = pwd.getpwnam("libvirt-qemu")
    except (FileNotFoundError, KeyError):
        return False
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    needed = 0o060 if found.st_gid in groups else 0o006
    return found.st_mode & needed == needed


async def _ready(made: Libvirtd, keeper: Child) -> bool:
    if keeper.status is not None:
        raise ChildProcessError(f"libvirtd's keeper ended with status {keeper.status}")
    return (made.run / "keeper").exists()


async def _end(keeper: Child) -> None:
    await finish(keeper.end(grace=10))


async def _gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()  # its keeper reaps it
