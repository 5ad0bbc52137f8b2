"""The OpenAPI document is kept: by the real service, over its socket, whoever asks."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from linkmgr import Client
from linkmgr.libvirt.client.connection import CONFIG_DIR
from linkmgr.testing.process import Result, execute
from tests.integration.cli.test_cli import Host
from tests.integration.faulty_service import command
from tests.integration.lab import Lab
from tests.integration.service.test_hostile import STRANGER, everything, serving

ROOT = Path(__file__).parents[3]


#: Another user, who may still read the sources and the interpreter wherever they are.
AS_STRANGER = [
    "setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups",
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--",
]  # fmt: skip


async def run_made_up(host: Host, qmp: Path, *, stranger: bool) -> Result:
    """Try every route with made-up requests."""
    program = [sys.executable, "-B", "-m", "tests.integration.made_up_requests"]
    words = [str(host.socket), str(qmp), *(["--stranger"] if stranger else [])]
    env = ["env", f"PYTHONPATH={ROOT}"]
    return await execute(
        [*env, *(AS_STRANGER if stranger else []), *program, *words], timeout=200, check=False
    )


async def made_up(host: Host, qmp: Path, *, stranger: bool = False) -> dict[str, Counter[str]]:
    """Try every route; how often each status was answered."""
    result = await run_made_up(host, qmp, stranger=stranger)
    assert not result.status, f"{result.output}\n{host.said()[-4000:]}"
    answered = json.loads(result.output.splitlines()[-1])
    return {route: Counter(statuses) for route, statuses in answered.items()}


async def prepared(host: Host, lab: Lab) -> Path:
    guest = await lab.guest(boot=False, add=False)
    async with Client(host.socket) as links:
        for name in ("blue", "red"):
            await lab.network(name)
            await links.create_network(name, "bridge", bridge=f"br-{name}")
            await links.create_port(name, "p1")
        await links.add_vm("web1", guest.qmp_path)
        await links.plug("web1/net0", "blue", notify="silent")
    return guest.qmp_path


async def cleared(host: Host) -> None:
    async with Client(host.socket) as links:
        for vm in await links.vms():
            await links.remove_vm(vm.name)
        for network in await links.networks():
            for port in await links.ports(network.name):
                await links.delete_port(network.name, port.name)
            await links.delete_network(network.name)


@pytest.mark.timeout(250)
async def test_made_up_requests_of_root_find_no_fault(tmp_path: Path, lab: Lab) -> None:
    async with serving(tmp_path) as host:
        qmp = await prepared(host, lab)
        answered = await made_up(host, qmp)
        total = sum(answered.values(), Counter[str]())
        assert total.keys() >= {"200", "400", "404"}
        done = {route for route, statuses in answered.items() if statuses["200"]}
        # Whether libvirt, which does not run here, is installed, so that it is missed.
        missed = {"GET /v1/domains"} if CONFIG_DIR.exists() else set()
        assert answered.keys() - done == {"GET /v1/operations/{id}"} | missed, "some never succeed"
        await cleared(host)
        assert "Traceback" not in host.said()


@pytest.mark.timeout(250)
async def test_made_up_requests_of_an_unprivileged_user_change_nothing(
    tmp_path: Path, lab: Lab
) -> None:
    async with serving(tmp_path) as host:
        qmp = await prepared(host, lab)
        before = await everything(host)
        answered = await made_up(host, qmp, stranger=True)
        assert await everything(host) == before
        for route, statuses in answered.items():
            if not route.startswith("GET "):
                assert not [status for status in statuses if status.startswith("2")], route
                assert statuses["403"], f"no request to {route} was well formed"
        await cleared(host)
        assert "Traceback" not in host.said()


async def test_a_service_that_lets_everybody_change_things_is_caught(
    tmp_path: Path, lab: Lab
) -> None:
    async with serving(tmp_path, command=command("no-access")) as host:
        qmp = await prepared(host, lab)
        result = await run_made_up(host, qmp, stranger=True)
        assert result.status
        assert "a stranger's POST /v1/gc was accepted" in result.output
        await cleared(host)
