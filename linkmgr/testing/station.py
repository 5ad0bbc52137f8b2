"""What a test asks of either end of a network: the guest, or a peer in a namespace."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from linkmgr.testing.frames import Counted, Sent, parse_counted, parse_sent
from linkmgr.testing.process import ProcessFailed, Result, finish, until

__all__ = ["Job", "Measurement", "Ping", "Station"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Ping:
    """How many echo requests were sent, and how many were answered."""

    sent: int
    received: int

    @property
    def lost(self) -> int:
        """How many were not answered."""
        return self.sent - self.received


class Job(ABC):
    """A command that runs on its own in a station."""

    @abstractmethod
    async def output(self) -> str:
        """Return what it has written so far."""

    @abstractmethod
    async def wait(self, timeout: float = 10.0) -> Result:
        """Wait until it ends by itself, at most ``timeout`` seconds.

        :raise TimeoutError: it still runs.
        """

    @abstractmethod
    async def stop(self) -> Result:
        """Ask it to end (SIGTERM), make it end if it does not, and return what it left behind."""


class Measurement(Generic[R]):
    """A report that exists once the ``async with`` block around the measurement has ended."""

    def __init__(self) -> None:
        self._report: R | None = None

    @property
    def report(self) -> R:
        """The report.

        :raise RuntimeError: the block has not ended yet.
        """
        if self._report is None:
            raise RuntimeError(
                "the report is there when the block around the measurement has ended"
            )
        return self._report

    def conclude(self, report: R) -> None:
        """Set the report."""
        self._report = report


class Station(ABC):
    """An end station (IEEE 802's word): runs commands, pings, sends and counts frames."""

    name: str
    busybox: str = "busybox"
    frames: str = "frames"
    wakeups: int = 1000  #: per second, of a sender; at a higher rate it sends small bursts
    iperf3: str = "iperf3"

    @abstractmethod
    async def run(self, command: str, *, timeout: float = 10.0, check: bool = False) -> Result:
        """Run a shell command to its end, at most ``timeout`` seconds.

        :raise ProcessFailed: its status is not 0, and ``check`` is set.
        :raise TimeoutError: it took too long, and was killed.
        """

    @abstractmethod
    async def spawn(self, command: str) -> Job:
        """Start one program with its arguments, and do not wait for it."""

    # --- interfaces -------------------------------------------------------------------------------
    async def carrier(self, ifname: str) -> bool:
        """Tell whether the interface sees a cable."""
        return await self._link(ifname, "carrier") == "1"

    async def carrier_changes(self, ifname: str) -> int:
        """Return how often the carrier came or went since the interface exists."""
        return int(await self._link(ifname, "carrier_changes"))

    async def ifindex(self, ifname: str) -> int:
        """Return the kernel's number of the interface: another one would be another device."""
        return int(await self._link(ifname, "ifindex"))

    async def mac(self, ifname: str) -> str:
        """Return the MAC address in use, in lower case."""
        return await self._link(ifname, "address")

    async def rx_packets(self, ifname: str) -> int:
        """Return how many frames were received since the interface exists."""
        return int(await self._link(ifname, "statistics/rx_packets"))

    async def tx_packets(self, ifname: str) -> int:
        """Return how many frames were sent since the interface exists."""
        return int(await self._link(ifname, "statistics/tx_packets"))

    async def ipv4(self, ifname: str) -> str | None:
        """Return the first IPv4 address, without prefix length; None if there is none."""
        return await self._address(ifname, r"inet ([\d.]+)")

    async def ipv6_link_local(self, ifname: str) -> str | None:
        """Return the IPv6 link-local address; None if there is none."""
        return await self._address(ifname, r"inet6 (fe80:[0-9a-f:]+)")

    async def wait_carrier(self, ifname: str, up: bool, *, timeout: float = 5.0) -> None:
        """Wait until the carrier is there, or gone.

        :raise TimeoutError: it is not so within ``timeout`` seconds.
        """

        async def asked() -> bool:
            return await self.carrier(ifname) is up

        await until(asked, timeout=timeout, what=f"{self.name}: {ifname} carrier {up}")

    async def wait_ipv4(self, ifname: str, prefix: str = "", *, timeout: float = 10.0) -> str:
        """Wait for an IPv4 address that begins with ``prefix`` ("10.1.0."), and return it.

        :raise TimeoutError: there is none within ``timeout`` seconds.
        """

        async def asked() -> str | None:
            address = await self.ipv4(ifname)
            return address if address and address.startswith(prefix) else None

        what = f"{self.name}: IPv4 address {prefix}* on {ifname}"
        address = await until(asked, timeout=timeout, what=what)
        assert address
        return address

    # --- traffic ----------------------------------------------------------------------------------
    async def ping(
        self, address: str, *, count: int = 3, interval: float = 0.2, wait: float = 1.0
    ) -> Ping:
        """Send ``count`` echo requests, ``interval`` seconds apart.

        ``wait`` is how long the last answer may take, in seconds. A link-local address needs its
        interface: "fe80::1%eth0". An address without a route is as unreachable as any other.
        """
        limit = math.ceil((count - 1) * interval + wait)
        result = await self.run(
            f"{self.busybox} ping -c {count} -i {interval} -W {math.ceil(wait)} -w {limit}"
            f" {shlex.quote(address)}",
            timeout=limit + 5,
        )
        found = re.search(r"(\d+) packets transmitted, (\d+) (?:packets )?received", result.output)
        return Ping(int(found[1]), int(found[2])) if found else Ping(count, 0)

    @asynccontextmanager
    async def sending(
        self,
        ifname: str,
        to: str,
        *,
        rate: int = 1000,
        count: int | None = None,
        tag: str = "frames",
        size: int = 60,
        source: str | None = None,
    ) -> AsyncIterator[Measurement[Sent]]:
        """Send numbered frames while the block runs, and longer if ``count`` asks for more.

        ``rate`` is in frames per second, ``size`` in bytes with the Ethernet header, ``to`` and
        ``source`` are MAC addresses, ``source`` by default the interface's own.
        """
        command = f"{self.frames} send -t {tag} -r {rate} -s {size} -w {self.wakeups}"
        command += f" -n {count}" if count else ""
        command += f" -S {source}" if source else ""
        measurement = Measurement[Sent]()
        now = asyncio.get_running_loop().time
        end = now() + (count or 0) / rate
        async with self._running(f"{command} {ifname} {to}") as job:
            yield measurement
            if count:
                await asyncio.sleep(end - now())  # asking meanwhile would take the guest's time
                await job.wait(count / rate + 10)
            measurement.conclude(parse_sent((await job.stop()).output))

    async def send_frames(
        self,
        ifname: str,
        to: str,
        *,
        count: int,
        rate: int = 1000,
        tag: str = "frames",
        size: int = 60,
        source: str | None = None,
    ) -> Sent:
        """Send ``count`` numbered frames and wait until that is done. Arguments as ``sending``."""
        async with self.sending(
            ifname, to, rate=rate, count=count, tag=tag, size=size, source=source
        ) as measurement:
            pass
        return measurement.report

    @asynccontextmanager
    async def counting(
        self, ifname: str, *, tag: str | None = None
    ) -> AsyncIterator[Measurement[Counted]]:
        """Count the numbered frames that arrive while the block runs, of one tag or of all."""
        measurement = Measurement[Counted]()
        only = f"-t {tag} " if tag else ""
        async with self._running(f"{self.frames} count {only}{ifname}") as job:
            what = f"{self.name}: frames count"
            if "ready" not in await until(job.output, timeout=10, what=what):
                raise ProcessFailed(self.name, "frames count", await job.stop())
            yield measurement
            measurement.conclude(parse_counted((await job.stop()).output))

    async def tcp_throughput(
        self, server: Station, address: str, *, seconds: float = 3.0, inward: bool = False
    ) -> float:
        """Measure one TCP stream to ``server`` at ``address``, or from it, in bits per second.

        The first second, in which TCP finds its window, is left out.

        :raise ProcessFailed: iperf3 did not reach the server.
        """
        async with server._running(f"{server.iperf3} -s -1 --forceflush") as job:
            await until(job.output, timeout=10, what=f"{server.name}: iperf3 listens")
            client = await self.run(
                f"{self.iperf3} -c {address} -t {seconds} -O 1 -J{' -R' if inward else ''}",
                timeout=seconds + 15,
                check=True,
            )
        return float(json.loads(client.output)["end"]["sum_received"]["bits_per_second"])

    # --- inside -----------------------------------------------------------------------------------
    @asynccontextmanager
    async def _running(self, command: str) -> AsyncIterator[Job]:
        job = await self.spawn(command)
        try:
            yield job
        except BaseException:
            with suppress(Exception):  # what went wrong first is what is told
                await finish(job.stop())
            raise

    async def _link(self, ifname: str, attribute: str) -> str:
        result = await self.run(f"cat /sys/class/net/{ifname}/{attribute}", check=True)
        return result.output.strip()

    async def _address(self, ifname: str, pattern: str) -> str | None:
        result = await self.run(f"ip addr show dev {ifname}", check=True)
        found = re.search(pattern, result.output)
        return found[1] if found else None
