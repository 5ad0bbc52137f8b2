"""A small real guest under real QEMU, with a shell on its console sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import secrets
import shlex
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, Self

from linkmgr.testing.process import Child, ProcessFailed, Result, finish, until
from linkmgr.testing.station import Job, Station

__all__ = ["Guest", "GuestError", "GuestGone", "GuestMonitorError", "GuestTimeout", "images"]

CHANNELS = 2  # shells that callers use; one more ends what takes too long in these
#: In MiB. Linux fills the queues of each virtio-serial port with pages, and QEMU 10.0.13 (Debian
#: 13) gives them 1024 entries, 4 MB each: 96 MiB were enough for every other one.
MEMORY_MIB = 160
SOCKET_PATH_MAX = 107  # sun_path of unix(7), without its final NUL

# Sooner in /init, and the same every time: no address randomisation, no self-tests, no mitigations.
# no_timer_check: Linux panics when a busy host delays the interrupts by which it tests its timer.
KERNEL_CMDLINE = (
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable cryptomgr.notests"
    " apparmor=0 audit=0 no_timer_check"
)


def images() -> Path:
    """Where ``make images`` puts the guest: LINKMGR_IMAGES, else build/vm-images of this checkout.

    :raise FileNotFoundError: it is not built.
    """
    default = Path(__file__).parents[2] / "build" / "vm-images"
    folder = Path(os.environ.get("LINKMGR_IMAGES", default))
    for name in ("vmlinuz", "initramfs.gz", "frames", "busybox", "iperf3"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"the test guest is not built ({folder / name}): make images")
    return folder


class GuestError(Exception):
    """Base of what can go wrong with a guest.

    GuestError
    ├── GuestGone           QEMU did not start, or has ended
    ├── GuestTimeout        a command took too long (also a TimeoutError)
    └── GuestMonitorError   QEMU refused a monitor command
    """


class GuestGone(GuestError):
    """QEMU did not start, or has ended; the message has its status and its last words."""


class GuestTimeout(GuestError, TimeoutError):
    """A command in the guest took too long and is killed; the message has its output so far."""


class GuestMonitorError(GuestError):
    """QEMU refused a monitor command."""


class Guest(Station):
    """A guest of vm-images/, under QEMU without KVM; ``async with`` starts and stops it.

    ``nic_args`` are the caller's ``-netdev`` and ``-device`` arguments; the interfaces are called
    eth0, eth1, ... in PCI order, virtio before vmxnet3. ``cmdline`` holds words for the guest's
    init (see vm-images/init): ``lm.ip.eth0=10.0.0.2/24``, ``lm.ip6.eth0=``, ``lm.dhcp=eth0,eth1``.
    A ``paused`` guest waits at its first instruction for ``cont`` from a monitor. ``qemu`` is a
    command line, by default LINKMGR_QEMU, else qemu-system-x86_64. Sockets and logs are put into
    ``workdir``.

    QEMU is killed by the kernel when the thread that started it ends.
    """

    def __init__(
        self,
        name: str,
        *,
        nic_args: Sequence[str],
        workdir: Path,
        cmdline: str = "",
        paused: bool = True,
        qemu: str | None = None,
        memory_mib: int = MEMORY_MIB,
        extra_args: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.workdir = workdir
        self.qmp_path = workdir / f"{name}.qmp"  # the monitor that linkmgr gets
        self.qmp2_path = workdir / f"{name}.qmp2"  # one more for tests and measurements
        self.console_path = workdir / f"{name}.console"  # what the kernel and init say
        self.log_path = workdir / f"{name}.log"  # what QEMU says
        for path in (self.qmp_path, self.qmp2_path):
            if len(os.fsencode(path)) > SOCKET_PATH_MAX:
                raise ValueError(f"longer than a unix socket can be called: {path}")
        self._arguments = (tuple(nic_args), tuple(extra_args))
        self._cmdline = f"{KERNEL_CMDLINE} lm.hostname={name} {cmdline}".strip()
        self._paused = paused
        self._qemu = shlex.split(qemu or os.environ.get("LINKMGR_QEMU") or "qemu-system-x86_64")
        self._memory_mb = memory_mib
        self._jobs = itertools.count(1)
        self._child: Child | None = None
        self._log: IO[bytes] | None = None
        self._monitor: _Stream | None = None
        self._shells: list[_Stream] = []

    # --- life -------------------------------------------------------------------------------------
    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self, *, timeout: float = 30.0) -> None:
        """Start QEMU; returns when its devices exist and its monitor sockets can be connected.

        :raise GuestGone: QEMU ended; the message has what it said.
        :raise TimeoutError: QEMU did not get there within ``timeout`` seconds.
        """
        if self._child is not None:
            raise RuntimeError(f"guest {self.name} has been started before")
        try:
            async with asyncio.timeout(timeout):
                await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End QEMU within about 2 s and close everything. Idempotent, also if it never started."""
        await finish(self._stop())

    def kill(self) -> None:
        """Kill QEMU as ``kill -9`` does. ``stop`` still has to follow."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal to QEMU."""
        self._process().signal(number)

    async def wait_exit(self, timeout: float = 10.0) -> int:
        """Wait until QEMU has ended by itself or by a signal, and return its status.

        :raise TimeoutError: it still runs after ``timeout`` seconds.
        """
        return await self._process().wait(timeout)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process().pid

    @property
    def running(self) -> bool:
        """Whether QEMU's process exists; its vCPU may be paused."""
        return self._child is not None and self._child.status is None

    async def qmp(self, command: str, **arguments: object) -> Any:
        """Run a command on a third monitor, which is this object's own, and return its answer.

        :raise GuestMonitorError: QEMU refused it.
        :raise GuestGone: QEMU has ended.
        """
        if self._monitor is None:
            raise GuestGone(f"guest {self.name} is not running")
        async with self._monitor.lock:
            return await self._execute(command, arguments)

    async def cont(self) -> None:
        """Let the vCPU run."""
        await self.qmp("cont")

    async def wait_boot(self, timeout: float = 60.0) -> None:
        """Wait until the guest's shell answers; emulated, that takes about 2 s.

        :raise GuestTimeout: it does not within ``timeout`` seconds.
        :raise GuestGone: QEMU ended; a kernel panic ends it too.
        """
        await self.run("true", timeout=timeout)

    # --- commands ---------------------------------------------------------------------------------
    async def run(
        self, command: str, *, timeout: float = 10.0, check: bool = False, channel: int = 0
    ) -> Result:
        r"""Run a shell command in the guest, at most ``timeout`` seconds, and return what it did.

        The commands of one ``channel`` wait for each other, those of the other do not. stdin is
        /dev/null. Bytes of the output that are not UTF-8 come as ``\xNN``.

        :raise ProcessFailed: its status is not 0, and ``check`` is set.
        :raise GuestTimeout: it took too long; it is killed with all its children.
        :raise GuestGone: QEMU has ended.
        """
        if not 0 <= channel < CHANNELS:
            raise ValueError(f"channel {channel}: there are {CHANNELS}, from 0")
        if not self._shells:
            raise GuestGone(f"guest {self.name} is not running")
        shell = self._shells[channel]
        token = secrets.token_hex(8)
        received = bytearray()
        try:
            async with asyncio.timeout(timeout), shell.lock:
                shell.send(_script(token, channel, command))
                try:
                    result = await self._result(shell, token.encode(), received)
                except asyncio.CancelledError:
                    self._shells[-1].send(_killer(token, channel))
                    raise
        except TimeoutError:
            said = _text(received.partition(token.encode() + b"\n")[2])
            raise GuestTimeout(
                f"{self.name}: {command!r} took longer than {timeout} s, so far it said {said!r}"
            ) from None
        if check and result.status:
            raise ProcessFailed(self.name, command, result)
        return result

    async def spawn(self, command: str) -> Job:
        """Start a command in the guest, in a session of its own, and do not wait for it."""
        job = f"/run/job{next(self._jobs)}"
        # The wrapper outlives the signal that ends its command, to write down the status.
        wrapper = f"trap : TERM; ({command}); echo $? >{job}.status"
        started = await self.run(
            f"setsid sh -c {shlex.quote(wrapper)} </dev/null >{job} 2>&1 & echo $!", check=True
        )
        return _GuestJob(self, job, int(started.output))

    # --- what only a guest has --------------------------------------------------------------------
    async def pci_address(self, ifname: str) -> str:
        """Return the PCI address of the interface's device, such as 0000:00:03.0."""
        device = await self.run(f"readlink -f /sys/class/net/{ifname}/device", check=True)
        found: list[str] = re.findall(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", device.output)
        return found[-1]

    async def uevent_seqnum(self) -> int:
        """Return how many uevents the kernel has sent: unchanged means nothing came or went."""
        return int((await self.run("cat /sys/kernel/uevent_seqnum", check=True)).output)

    async def uevents(self) -> list[str]:
        """Return the uevents since the drivers were loaded, each as "SEQNUM ACTION DEVPATH"."""
        return (await self.run("cat /run/uevents", check=True)).output.splitlines()

    # --- inside -----------------------------------------------------------------------------------
    def _process(self) -> Child:
        if self._child is None:
            raise GuestGone(f"guest {self.name} has not been started")
        return self._child

    async def _start(self) -> None:
        self.workdir.mkdir(parents=True, exist_ok=True)
        theirs: list[socket.socket] = []

        def pair() -> _Stream:
            ours, other = socket.socketpair()
            theirs.append(other)
            return _Stream(ours)

        try:
            self._monitor = pair()
            self._shells = [pair() for _ in range(CHANNELS + 1)]
            self._log = self.log_path.open("wb")
            self._child = Child(
                self._argv(*(end.fileno() for end in theirs)),
                output=self._log,
                pass_fds=[end.fileno() for end in theirs],
            )
        finally:
            for end in theirs:
                end.close()
        for stream in (self._monitor, *self._shells):
            await stream.open()
        # The greeting comes from the main loop, so all devices exist by then.
        await self._answer()
        await self._execute("qmp_capabilities", {})

    def _argv(self, monitor: int, *shells: int) -> list[str]:
        folder = images()
        ports = [f"shell{number}" for number in range(len(shells))]
        nic_args, extra_args = self._arguments
        argv = [
            *self._qemu,
            *("-name", self.name, "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "q35", "-accel", "tcg", "-cpu", "qemu64", "-m", str(self._memory_mb)),
            *("-no-reboot", "-kernel", str(folder / "vmlinuz")),
            *("-initrd", str(folder / "initramfs.gz"), "-append", self._cmdline),
            *("-serial", f"file:{self.console_path}"),
            *("-chardev", f"socket,id=own,fd={monitor}", "-mon", "chardev=own,mode=control"),
            *("-qmp", f"unix:{self.qmp_path},server=on,wait=off"),
            *("-qmp", f"unix:{self.qmp2_path},server=on,wait=off"),
            *("-device", "virtio-serial-pci"),
        ]
        for port, fd in zip(ports, shells, strict=True):
            argv += ["-chardev", f"socket,id={port},fd={fd}"]
            argv += ["-device", f"virtserialport,chardev={port},name={port}"]
        return [*argv, *nic_args, *extra_args, *(["-S"] if self._paused else [])]

    async def _stop(self) -> None:
        if self._child is not None:
            await self._child.end()
        for stream in (self._monitor, *self._shells):
            if stream is not None:
                await stream.close()
        self._monitor = None
        self._shells = []
        if self._log is not None:
            self._log.close()
        for path in (self.qmp_path, self.qmp2_path):
            path.unlink(missing_ok=True)

    async def _result(self, shell: _Stream, token: bytes, received: bytearray) -> Result:
        """Read until the command's end mark; what was left over from an earlier one is skipped."""
        pattern = re.compile(rb"%b\n(.*)%b (\d+)\n" % (token, token), re.DOTALL)
        while not (token + b" " in received and (found := pattern.search(received))):
            data = await shell.read()
            if not data:
                await self._gone()
            received += data
        return Result(int(found[2]), _text(found[1]))

    async def _execute(self, command: str, arguments: dict[str, object]) -> Any:
        assert self._monitor is not None
        request = {"execute": command, "arguments": arguments}
        self._monitor.send(json.dumps(request).encode() + b"\n")
        while True:
            answer = await self._answer()
            if "error" in answer:
                raise GuestMonitorError(f"{self.name}: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    async def _answer(self) -> dict[str, Any]:
        assert self._monitor is not None
        line = await self._monitor.readline()
        if not line:
            await self._gone()
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def _gone(self) -> NoReturn:
        try:
            status: int | str = await self._process().wait(2)
        except TimeoutError:
            status = "unknown: it has closed its sockets, but still runs"
        words = self.log_path.read_text(errors="replace").strip()
        console = self.console_path
        panic = console.read_text(errors="replace")[-4000:].strip() if console.exists() else ""
        raise GuestGone(
            f"QEMU of guest {self.name} has ended, status {status}. It said: {words}"
            + (f"\nThe guest's console said: {panic}" if panic else "")
        )


class _GuestJob(Job):
    def __init__(self, guest: Guest, path: str, pid: int) -> None:
        self._guest = guest
        self._path = path
        self._pid = pid

    async def output(self) -> str:
        return (await self._guest.run(f"cat {self._path}", check=True)).output

    async def wait(self, timeout: float = 10.0) -> Result:
        what = f"{self._guest.name}: end of job {self._path}"
        status = await until(self._status, timeout=timeout, what=what)
        return Result(int(status), await self.output())

    async def stop(self) -> Result:
        if not await self._status():
            await self._guest.run(f"kill -TERM -{self._pid}")
        try:
            return await self.wait(2)
        except TimeoutError:
            await self._guest.run(f"kill -KILL -{self._pid}; echo 137 >{self._path}.status")
            return await self.wait(2)

    async def _status(self) -> str:
        return (await self._guest.run(f"cat {self._path}.status 2>/dev/null")).output.strip()


class _Stream:
    """Our end of a socket pair whose other end QEMU has."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.lock = asyncio.Lock()

    async def open(self) -> None:
        limit = 1 << 24  # bytes: QEMU answers its schema in one line of 1.3 MB
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._end, limit=limit)

    def send(self, data: bytes) -> None:
        if self._writer is not None:
            self._writer.write(data)

    async def read(self) -> bytes:
        """Return what is there, at least one byte; none when QEMU is gone."""
        return await self._reading(lambda reader: reader.read(1 << 16))

    async def readline(self) -> bytes:
        """Return one line; none when QEMU is gone."""
        return await self._reading(asyncio.StreamReader.readline)

    async def _reading(self, how: Callable[[asyncio.StreamReader], Awaitable[bytes]]) -> bytes:
        if self._reader is None:
            return b""
        try:
            return await how(self._reader)
        except ConnectionResetError:  # it ended with something of ours unread
            return b""

    async def close(self) -> None:
        if self._writer is None:
            self._end.close()
            return
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _script(token: str, channel: int, command: str) -> bytes:
    """Say what the shell reads to run one command between two marks, in its own session."""
    return (
        f"echo {token}; setsid sh -c {shlex.quote(command)} </dev/null 2>&1 &"
        f" echo $! {token} >/run/channel{channel}; wait $!; echo {token} $?\n"
    ).encode(errors="surrogateescape")


def _killer(token: str, channel: int) -> bytes:
    """Say what ends the command of ``token``, also if a paused guest only begins it later."""
    return (
        f"for i in $(seq 100); do read -r pid token </run/channel{channel};"
        f' [ "$token" = {token} ] && kill -9 -$pid && break; sleep 0.1; done 2>/dev/null &\n'
    ).encode()


def _text(data: bytes | bytearray) -> str:
    return data.decode(errors="backslashreplace")
