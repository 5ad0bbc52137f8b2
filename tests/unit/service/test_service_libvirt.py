"""What libvirt's hook hands over reaches whoever looks after domains; only root hands it over."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from linkmgr.libvirt.domains.controller import DomainController
from linkmgr.libvirt.xml.document import MAX_BYTES
from linkmgr.service.auth.peer import Peer
from linkmgr.service.config.schema import Config, HookSection
from linkmgr.service.http import server
from linkmgr.service.http.routes import libvirt
from tests.hook_copy import write_hook
from tests.unit.service_lab import Lab, request, running

HOOK = libvirt.HOOK_PATH
XML = "<domain><name>web1</name></domain>"
CALL = {"operation": "started", "sub_operation": "begin", "extra": "-", "name": "web1", "xml": XML}


@dataclass(frozen=True)
class Answer:
    ok: bool
    said: str


@dataclass
class Controller:
    """Remembers what it was told, and agrees unless the XML says no."""

    heard: list[tuple[str, str, str, str]] = field(default_factory=list)
    seconds: float = 0.0

    async def on_hook(
        self, operation: str, sub_operation: str, extra: str, domain_xml: str
    ) -> Answer:
        await asyncio.sleep(self.seconds)
        self.heard.append((operation, sub_operation, extra, domain_xml))
        return Answer(">no<" not in domain_xml, f"heard {operation}")


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
async def lab(tmp_path: Path, controller: Controller) -> AsyncIterator[Lab]:
    async with running(tmp_path) as made:
        made.context.domain_controller = cast("DomainController", controller)
        yield made


async def run(lab: Lab, *words: str, xml: str = XML, config: str = "") -> tuple[int, str]:
    """Run the hook against the service; its status and what it says."""
    folder = Path(tempfile.mkdtemp(dir=lab.socket.parent))
    file = folder / "linkmgr.toml"
    file.write_text(config)
    hook = write_hook(folder / "hook", socket=lab.socket, config=file, program=lab.socket)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        hook, *words, stdin=pipe, stdout=pipe, stderr=pipe
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate(xml.encode())
    assert out == b""
    assert process.returncode is not None
    return process.returncode, err.decode()


async def heard(controller: Controller, count: int) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while len(controller.heard) < count:  # noqa: ASYNC110 - the controller knows no test
                await asyncio.sleep(0.01)
    assert len(controller.heard) == count


async def test_a_hook_is_heard_and_answered(lab: Lab, controller: Controller) -> None:
    answer = await lab.ask("POST", HOOK, CALL)
    assert (answer.status, answer.json) == (200, {"ok": True, "said": "heard started"})
    assert answer.raw.startswith(b'{"ok":true')  # what the hook looks at first
    assert controller.heard == [("started", "begin", "-", XML)]


async def test_only_root_hands_over_what_becomes_of_a_domain(
    lab: Lab, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "peer_of", lambda sock: Peer(65534, 65534, 1, frozenset({65534})))
    answer = await lab.ask("POST", HOOK, CALL)
    assert (answer.status, answer.json["code"]) == (403, "forbidden")
    large = await lab.ask("POST", HOOK, CALL | {"xml": "x" * (1 << 17)})
    assert (large.status, large.json["code"]) == (413, "too-large")
    assert controller.heard == []
    assert (await run(lab, "web1", "started", "begin", "-")) == (0, "")


async def test_large_xml_of_root_is_heard_and_larger_is_refused(
    lab: Lab, controller: Controller
) -> None:
    xml = "\x01" * MAX_BYTES  # six characters of JSON each
    assert (await lab.ask("POST", HOOK, CALL | {"xml": xml})).status == 200
    assert controller.heard[0][3] == xml
    answer = await lab.ask("POST", HOOK, raw=b"x" * (libvirt.MAX_HOOK_BODY_BYTES + 1))
    assert (answer.status, answer.json["code"]) == (413, "too-large")
    assert (await lab.ask("POST", "/v1/networks", raw=b"x" * (1 << 17))).status == 413


@pytest.mark.parametrize(
    "body",
    [{}, {"operation": 1}, CALL | {"xml": None}, CALL | {"more": ""}, CALL | {"name": "\ud800"}],
)
async def test_what_is_no_hook_is_refused(lab: Lab, controller: Controller, body: object) -> None:
    assert (await lab.ask("POST", HOOK, body)).status == 400
    assert controller.heard == []


async def test_the_script_reaches_the_service_and_waits_until_the_cables_are_in(
    lab: Lab, controller: Controller
) -> None:
    controller.seconds = 0.3
    assert await run(lab, "web1", "started", "begin", "-") == (0, "")
    assert controller.heard == [("started", "begin", "-", XML)]
    closed = "[hook]\nfail_closed = true\n"
    assert await run(lab, "web1", "prepare", "begin", "-", config=closed) == (0, "")
    status, said = await run(
        lab, "web1", "prepare", "begin", "-", config=closed, xml="<domain>no</domain>"
    )
    assert status == 1
    assert "domain web1 is not started: heard prepare" in said
    assert (await run(lab, "web1", "prepare", "begin", "-", xml="<domain>no</domain>"))[0] == 0
    await heard(controller, 4)


async def test_nothing_that_is_handed_over_is_lost_though_nobody_waits_for_the_answer(
    lab: Lab, controller: Controller
) -> None:
    large = "<a b='c'>\n</a>" * 60_000
    words = [("release", "end"), ("start", "begin"), ("stopped", "end"), ("reconnect", "begin")]
    config = "[hook]\nseconds = 20\n"  # how fast this machine is does not matter here
    for xml in (XML, large):
        done = await asyncio.gather(
            *(run(lab, "web1", *words[n % 4], "-", xml=xml, config=config) for n in range(20))
        )
        assert done == [(0, "")] * 20
    await heard(controller, 40)
    assert sum(xml == large for *_, xml in controller.heard) == 20


async def test_a_hook_that_has_ended_before_it_is_accepted_is_heard(
    lab: Lab, controller: Controller
) -> None:
    controller.seconds = 0.05
    for _ in range(100):  # the service gets no turn meanwhile
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(lab.socket))
            sock.sendall(request("POST", HOOK, CALL | {"xml": "x" * 100_000}))
    await heard(controller, 100)


async def test_nothing_waits_for_a_hook_that_has_ended(lab: Lab, controller: Controller) -> None:
    await lab.context.use(Config(hook=HookSection(seconds=0.1)))
    controller.seconds = 60
    assert (await run(lab, "web1", "started", "begin", "-", config="[hook]\nseconds=0.1"))[0] == 0
    answer = await lab.ask("POST", HOOK, CALL)
    assert (answer.status, answer.json["code"]) == (408, "too-slow")
    assert controller.heard == []


async def test_the_hook_is_described_as_what_it_is(lab: Lab) -> None:
    document = (await lab.ask("GET", "/openapi.json")).json
    described = document["paths"][HOOK]["post"]
    assert "202" not in described["responses"]
    assert "parameters" not in described
    for model in ("HookCall", "HookAnswered"):
        assert document["components"]["schemas"][model]["examples"]
