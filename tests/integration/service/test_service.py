"""The service with real verbs: a guest is plugged, swapped and unplugged by plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from linkmgr.events import EventKind
from linkmgr.libvirt.domains.controller import DomainController
from linkmgr.model import Drift
from linkmgr.service.config.schema import Config, NetworkSection
from linkmgr.service.context import ServiceContext
from linkmgr.service.listeners import listening
from linkmgr.service.main import Service
from linkmgr.service.systemd.notify import SystemdNotifier
from linkmgr.state.directory import StateDirectory
from linkmgr.swap.steps import Step
from linkmgr.testing.process import until
from tests.integration.lab import Lab, make_lab
from tests.unit.service_lab import read_answer, request

NIC = "/v1/nics/web1/net0"
CABLE = "/v1/connections/web1/net0"
STATIC = " ".join(f"lm.ip.eth0=10.{n}.0.2/24" for n in (1, 2))


class Api:
    """Plain HTTP on the service's socket."""

    def __init__(self, socket: Path, context: ServiceContext) -> None:
        self.socket = socket
        self.context = context

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """Make a request; the JSON of the answer, with its status as ``http``."""
        reader, writer = await asyncio.open_unix_connection(self.socket)
        try:
            writer.write(request(method, path, body, headers=headers))
            answer = await read_answer(reader)
        finally:
            writer.close()
            await writer.wait_closed()
        known = answer.json if "json" in answer.headers["content-type"] else {}
        return {**known, "http": answer.status, "text": answer.raw.decode()}


@contextlib.asynccontextmanager
async def serving(lab: Lab, config: Config | None = None) -> AsyncIterator[Api]:
    """Run the service over the lab's verbs."""
    async with (
        listening(lab.workdir / "api.sock") as sock,
        DomainController(lab.links, None) as controller,
    ):
        context = ServiceContext(lab.links, config or Config(), StateDirectory(lab.workdir))
        await context.declared.apply(context.config.networks)
        context.domain_controller = controller
        service = Service(context, SystemdNotifier(None))
        task = asyncio.create_task(service.run(sock))
        try:
            await service.listens()
            yield Api(lab.workdir / "api.sock", context)
        finally:
            service.stop()
            await asyncio.wait_for(task, 30)


async def test_a_guest_is_plugged_swapped_and_unplugged_by_plain_http(lab: Lab) -> None:
    await lab.network("blue")
    await lab.network("green")
    guest = await lab.guest(cmdline=STATIC, add=False, boot=False)
    async with serving(lab) as api:
        added = await api.ask("POST", "/v1/vms", {"name": "web1", "qmp": str(guest.qmp_path)})
        assert (added["http"], added["nics"][0]["state"]) == (200, "unplugged")
        await guest.cont()
        await guest.wait_boot()
        assert not (await guest.ping("10.1.0.1")).received
        for network, at in (("blue", 1), ("green", 2), ("blue", 1)):
            plugged = await api.ask("PUT", CABLE, {"target": network})
            assert (plugged["http"], plugged["changed"]) == (200, True)
            assert plugged["nic"]["connection"]["port"]["network"]["name"] == network
            assert (await guest.ping(f"10.{at}.0.1")).received
        assert (await api.ask("PUT", CABLE, {"target": "blue"}))["changed"] is False
        assert (await api.ask("GET", "/v1/check"))["findings"] == []
        await api.ask("PUT", f"{NIC}/link", {"state": "down"})
        assert (await api.ask("GET", NIC))["link"] == "down"
        assert (await api.ask("DELETE", CABLE))["changed"] is True
        assert (await api.ask("DELETE", CABLE))["changed"] is False
        metrics = (await api.ask("GET", "/metrics"))["text"]
        assert 'linkmgr_nics{state="unplugged"} 1.0' in metrics
        assert 'linkmgr_verbs_total{code="ok",verb="plug"} 4.0' in metrics
        for step in (Step.STAGE, Step.SWITCH, Step.RELEASE):
            assert f'linkmgr_step_seconds_count{{step="{step}"}}' in metrics
        assert (await api.ask("DELETE", "/v1/vms/web1"))["changed"] is True


async def test_errors_of_the_real_verbs_come_with_their_nic_and_its_state(lab: Lab) -> None:
    await lab.guest(boot=False)
    async with serving(lab) as api:
        await api.ask(
            "POST", "/v1/networks",
            {"name": "blue", "driver": "bridge", "options": {"bridge": "nowhere"}},
        )  # fmt: skip
        failed = await api.ask("PUT", CABLE, {"target": "blue"})
        assert (failed["http"], failed["code"]) == (424, "link-missing")
        assert (failed["nic"], failed["state"]) == ("web1/net0", "unplugged")
        assert failed["detail"].startswith("web1/net0: ")
        bad = {"name": "red", "driver": "bridge", "options": {"bridge": "b", "mtu": "big"}}
        assert (await api.ask("POST", "/v1/networks", bad))["code"] == "bad-option"
        assert (await api.ask("GET", CABLE))["http"] == 405


async def test_a_client_that_goes_away_in_the_middle_stops_no_swap(tmp_path: Path) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold(step: Step) -> None:
        if step is Step.SWITCH:
            reached.set()
            await go_on.wait()

    async with make_lab(tmp_path, probe=hold) as lab:
        await lab.network("blue")
        await lab.guest(boot=False)
        async with serving(lab) as api:
            _, writer = await asyncio.open_unix_connection(api.socket)
            body = b'{"target": "blue"}'
            writer.write(
                f"PUT {CABLE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            await reached.wait()
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            await asyncio.sleep(0.1)
            go_on.set()

            async def done() -> bool:
                (operation,) = (await api.ask("GET", "/v1/operations"))["operations"]
                return bool(operation["state"] == "done")

            await until(done, timeout=10, what="the operation is done")
            assert (await api.ask("GET", NIC))["state"] == "plugged"


async def test_events_of_the_real_verbs_are_streamed(lab: Lab) -> None:
    await lab.network("blue")
    await lab.guest(boot=False)
    async with serving(lab) as api:
        reader, writer = await asyncio.open_unix_connection(api.socket)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        started = await api.ask("PUT", CABLE, {"target": "blue"}, Prefer="respond-async")
        assert started["http"] == 202
        async with asyncio.timeout(10):
            while not (line := await reader.readline()).startswith(b"data: "):
                pass
        event = json.loads(line.removeprefix(b"data: "))
        assert (event["kind"], event["subject"]) == (EventKind.PLUGGED, "web1/net0")
        assert event["details"]["port"] == "blue"
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("changed", [{"bridge": "br-green"}, None])
async def test_a_reload_touches_no_cable_and_waits_for_the_last_unplug(
    lab: Lab, changed: dict[str, Any] | None
) -> None:
    await lab.network("blue")
    guest = await lab.guest(cmdline=STATIC)

    def section(options: dict[str, Any]) -> NetworkSection:
        return NetworkSection(driver="bridge", options=options, drift=Drift.REPAIR)

    one = Config(networks={"kept": section({"bridge": "br-blue"})})
    two = Config(networks={"kept": section(changed)} if changed else {})

    async def bridge_of(api: Api) -> str | None:
        networks = (await api.ask("GET", "/v1/networks"))["networks"]
        return {each["name"]: each["options"]["bridge"] for each in networks}.get("kept")

    async with serving(lab, one) as api:
        await api.ask("PUT", CABLE, {"target": "kept"})
        before = (await api.ask("GET", NIC))["connection"]
        assert (await guest.ping("10.1.0.1")).received
        await api.context.use(two)
        assert (await api.ask("GET", NIC))["connection"] == before
        assert (await guest.ping("10.1.0.1")).received
        assert await bridge_of(api) == "br-blue"
        assert (await api.ask("DELETE", "/v1/networks/kept"))["code"] == "read-only"
        await api.ask("DELETE", CABLE)
        wanted = changed["bridge"] if changed else None

        async def settled() -> bool:
            return await bridge_of(api) == wanted

        await until(settled, timeout=10, what="the network is as the configuration says")
