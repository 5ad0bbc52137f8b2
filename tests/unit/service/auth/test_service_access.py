"""Reading is for everybody; what may be changed depends on who the kernel says it is."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from linkmgr.errors import Forbidden
from linkmgr.model import NicRef
from linkmgr.service.auth.peer import Peer, peer_of
from linkmgr.service.auth.policy import Access
from linkmgr.service.config.schema import AccessSection, Config, Permission, Rule
from linkmgr.service.http import schemas, server
from tests.unit.service_lab import Lab, running

GROUP = 54321
NIC = NicRef("web1", "net0")
NOBODY = Peer(65534, 65534, 1, frozenset({65534}))
MEMBER = Peer(1000, 1000, 1, frozenset({1000, GROUP}))
NEEDS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")

# Becomes another user, then speaks HTTP; prints status and body of each request.
CLIENT = """
import json, os, socket, sys
path, uid, gid, groups, requests = json.loads(sys.argv[1])
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
answers = []
for method, where, body in requests:
    s = socket.socket(socket.AF_UNIX); s.connect(path)
    data = json.dumps(body).encode() if body is not None else b""
    s.sendall(f"{method} {where} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n"
              f"Content-Type: application/json\\r\\nContent-Length: {len(data)}\\r\\n\\r\\n"
              .encode() + data)
    raw = b""
    while got := s.recv(65536): raw += got
    head, _, rest = raw.partition(b"\\r\\n\\r\\n")
    answers.append([int(head.split()[1]), json.loads(rest)])
print(json.dumps(answers))
"""
CHANGES: list[tuple[str, str, object]] = [
    ("POST", "/v1/vms", {"name": "web2", "qmp": "/nowhere"}),
    ("DELETE", "/v1/vms/web1", None),
    ("POST", "/v1/networks", {"name": "green", "driver": "bridge"}),
    ("DELETE", "/v1/networks/blue", None),
    ("POST", "/v1/ports", {"network": "blue", "name": "p8"}),
    ("DELETE", "/v1/ports/blue/p7", None),
    ("PUT", "/v1/nics/web1/net0/link", {"state": "down"}),
    ("PUT", "/v1/connections/web1/net0", {"target": "blue"}),
    ("DELETE", "/v1/connections/web1/net0", None),
    ("PUT", "/v1/nics/web1/link", {"state": "down"}),
    ("PUT", "/v1/connections/web1", {"target": "blue"}),
    ("DELETE", "/v1/connections/web1", None),
    ("POST", "/v1/gc", {}),
]
READS = ["/v1/vms", "/v1/networks", "/v1/ports", "/v1/nics", "/v1/nics/web1/net0",
         "/v1/connections", "/v1/check", "/v1/operations", "/healthz", "/openapi.json"]  # fmt: skip


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a group linkmgr."""

    def look_up(name: str) -> object:
        assert name == "linkmgr"
        return SimpleNamespace(gr_gid=GROUP)

    monkeypatch.setattr(grp, "getgrnam", look_up)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def lab(open_folder: Path, group: None) -> AsyncIterator[Lab]:
    rule = Rule(
        user=1001, verbs=[Permission.UNPLUG, Permission.PLUG], nics=["web1/*"], networks=["blue"]
    )
    async with running(open_folder, Config(access=AccessSection(rules=[rule]))) as made:
        await made.api.add_vm("web1", "/nowhere")
        await made.api.create_network("blue", "bridge")
        await made.api.create_network("green", "bridge")
        await made.api.create_port("blue", "p7")
        yield made


async def as_user(
    lab: Lab, uid: int, gid: int, groups: list[int], requests: list[tuple[str, str, object]]
) -> list[tuple[int, dict[str, object]]]:
    argument = json.dumps([str(lab.socket), uid, gid, groups, requests])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", CLIENT, argument, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(20):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return [(status, body) for status, body in json.loads(out)]


@NEEDS_ROOT
async def test_a_user_outside_the_group_reads_everything_and_changes_nothing(lab: Lab) -> None:
    before = (dict(lab.api.the_nics), dict(lab.api.the_networks), dict(lab.api.the_ports))
    answers = await as_user(lab, 65534, 65534, [], [("GET", path, None) for path in READS])
    assert [status for status, _ in answers] == [200] * len(READS)
    for status, body in await as_user(lab, 65534, 65534, [], CHANGES):
        assert (status, body["code"]) == (403, "forbidden"), body
        schemas.ProblemForm.model_validate(body)
    asked = (lab.api.the_nics, lab.api.the_networks, lab.api.the_ports)
    assert asked == before
    assert not lab.context.operations.all()


@NEEDS_ROOT
@pytest.mark.parametrize(("gid", "groups"), [(GROUP, []), (1000, [7, GROUP])])
async def test_a_member_of_the_group_changes_everything(
    lab: Lab, gid: int, groups: list[int]
) -> None:
    plug = ("PUT", "/v1/connections/web1/net0", {"target": "blue"})
    assert (await as_user(lab, 1000, gid, groups, [plug]))[0][0] == 200
    assert lab.api.uids == [1000]


@NEEDS_ROOT
async def test_a_user_with_a_rule_does_what_it_says_and_nothing_else(lab: Lab) -> None:
    answers = await as_user(
        lab, 1001, 1001, [GROUP],
        [
            ("PUT", "/v1/connections/web1/net0", {"target": "blue"}),
            ("PUT", "/v1/connections/web1/net0", {"target": "blue:p7"}),
            ("DELETE", "/v1/connections/web1/net0", None),
            ("PUT", "/v1/connections/web1/net0", {"target": "green"}),
            ("PUT", "/v1/nics/web1/net0/link", {"state": "down"}),
            ("DELETE", "/v1/vms/web1", None),
        ],
    )  # fmt: skip
    assert [status for status, _ in answers] == [200, 200, 200, 403, 403, 403]


@NEEDS_ROOT
async def test_a_rule_is_held_against_the_nic_that_a_name_means(lab: Lab) -> None:
    await lab.api.add_vm("root1", "/nowhere")
    theirs = "52:54:00:00:00:77"
    root1 = NicRef("root1", "net0")
    lab.api.the_nics[root1] = replace(lab.api.the_nics[root1], mac=theirs)
    answers = await as_user(
        lab, 1001, 1001, [GROUP],
        [
            ("PUT", "/v1/connections/52:54:00:12:34:56", {"target": "blue"}),
            ("DELETE", "/v1/connections/web1", None),
            ("PUT", f"/v1/connections/{theirs}", {"target": "blue"}),
            ("PUT", f"/v1/connections/root1/{theirs}", {"target": "blue"}),
            ("PUT", "/v1/connections/root1", {"target": "blue"}),
            ("DELETE", f"/v1/connections/{theirs}", None),
            ("PUT", f"/v1/nics/{theirs}/link", {"state": "down"}),
        ],
    )  # fmt: skip
    assert [status for status, _ in answers] == [200, 200, 403, 403, 403, 403, 403]
    assert "may not plug root1/net0 blue" in str(answers[2][1]["what"])


async def test_a_rule_for_one_network_takes_no_guest_off_another(lab: Lab) -> None:
    await lab.context.use(
        Config(access=AccessSection(rules=[Rule(user=1003, nics=["*"], networks=["blue"])]))
    )
    await lab.api.plug("web1/net0", "green")
    tried: list[tuple[str, str, object]] = [
        ("PUT", "/v1/connections/web1/net0", {"target": "blue"}),
        ("DELETE", "/v1/connections/web1/net0", None),
        ("PUT", "/v1/nics/web1/net0/link", {"state": "down"}),
    ]
    answers = await as_user(lab, 1003, 1003, [], tried)
    assert [status for status, _ in answers] == [403, 403, 403]
    assert "while the NIC is on green" in str(answers[0][1]["what"])
    await lab.api.unplug("web1/net0")
    answers = await as_user(lab, 1003, 1003, [], [tried[0], tried[2], tried[1]])
    assert [status for status, _ in answers] == [200, 200, 200]


async def test_a_reload_changes_who_may_do_what(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "peer_of", lambda sock: MEMBER)
    unplug = ("DELETE", "/v1/connections/web1/net0")
    assert (await lab.ask(*unplug)).status == 200
    await lab.context.use(
        Config(
            access=AccessSection(
                rules=[Rule(user=1000, verbs=[Permission.PLUG], nics=["*"], networks=["*"])]
            )
        )
    )
    assert (await lab.ask(*unplug)).status == 403
    await lab.context.use(Config())
    assert (await lab.ask(*unplug)).status == 200


def test_the_kernel_says_who_is_there() -> None:
    left, right = socket.socketpair()
    with left, right:
        peer = peer_of(left)
    assert (peer.uid, peer.gid, peer.pid) == (os.getuid(), os.getgid(), os.getpid())
    assert peer.groups == {os.getgid(), *os.getgroups()}


def allowed(access: Access, peer: Peer, verb: Permission, **about: object) -> bool:
    try:
        access.check(peer, verb, **about)  # type: ignore[arg-type]
    except Forbidden:
        return False
    return True


@pytest.mark.usefixtures("group")
def test_root_the_services_own_user_and_the_group_may_do_everything() -> None:
    access = Access(AccessSection())
    for verb in Permission:
        assert allowed(access, Peer(0, 0, 1, frozenset()), verb)
        assert allowed(access, Peer(os.geteuid(), 7, 1, frozenset({7})), verb)
        assert allowed(access, MEMBER, verb)
        assert not allowed(access, NOBODY, verb)


def test_without_the_group_only_root_may_change_anything(caplog: pytest.LogCaptureFixture) -> None:
    access = Access(AccessSection(group="no-such-group"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no-such-group" in caplog.text
    assert not allowed(access, MEMBER, Permission.PLUG, nic=NIC, network="blue")
    assert allowed(access, Peer(0, 0, 1, frozenset()), Permission.PLUG, nic=NIC, network="blue")


@pytest.mark.usefixtures("group")
def test_a_rule_for_a_user_that_is_gone_lets_nobody_in(caplog: pytest.LogCaptureFixture) -> None:
    access = Access(AccessSection(rules=[Rule(user="no-such-user", nics=["*"], networks=["*"])]))
    assert "no-such-user" in caplog.text
    assert not allowed(access, NOBODY, Permission.PLUG, nic=NIC, network="blue")


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    ("rule", "verb", "about", "may"),
    [
        ({"verbs": ["gc"]}, Permission.GC, {"nic": "*", "network": "*"}, True),
        ({"verbs": ["gc"], "nics": ["web1/*"]}, Permission.GC, {"nic": "*", "network": "*"}, False),
        (
            {"verbs": ["gc"], "networks": ["blue"]},
            Permission.GC,
            {"nic": "*", "network": "*"},
            False,
        ),
        ({"verbs": []}, Permission.PLUG, {"nic": NIC, "network": "blue"}, False),
        ({"nics": []}, Permission.PLUG, {"nic": NIC, "network": "blue"}, False),
        ({"verbs": ["remove_vm"], "nics": ["web1/*"]}, Permission.REMOVE_VM, {"nic": "web1"}, True),
        (
            {"verbs": ["remove_vm"], "nics": ["web1/net?"]},
            Permission.REMOVE_VM,
            {"nic": "web1"},
            False,
        ),
        (
            {"verbs": ["remove_vm"], "nics": ["web1/net*"]},
            Permission.REMOVE_VM,
            {"nic": "web1"},
            False,
        ),
        (
            {"verbs": ["remove_vm"], "nics": ["web1/net0"]},
            Permission.REMOVE_VM,
            {"nic": "web1"},
            False,
        ),
        ({"verbs": ["remove_vm"], "nics": ["web*"]}, Permission.REMOVE_VM, {"nic": "web1"}, True),
        ({"nics": ["web1"]}, Permission.UNPLUG, {"nic": NIC}, False),
        ({"nics": ["web.*"]}, Permission.UNPLUG, {"nic": NIC}, False),
        ({"nics": ["x", "*/net0"]}, Permission.UNPLUG, {"nic": NIC}, True),
        ({"networks": ["blue"]}, Permission.UNPLUG, {"nic": NIC}, True),
        ({"networks": ["blue"]}, Permission.PLUG, {"nic": NIC, "network": "blue2"}, False),
        ({"networks": ["blue"]}, Permission.PLUG, {"nic": NIC, "network": "blue"}, True),
        (
            {"verbs": ["create_network"], "networks": ["t-*"]},
            Permission.CREATE_NETWORK,
            {"network": "t-1"},
            True,
        ),
        (
            {"verbs": ["delete_port"], "networks": ["t-*"]},
            Permission.DELETE_PORT,
            {"network": "u-1"},
            False,
        ),
    ],
)
def test_a_rule_is_about_verbs_nics_and_networks(
    rule: dict[str, list[str]], verb: Permission, about: dict[str, object], may: bool
) -> None:
    all_of_it = {"nics": ["*"], "networks": ["*"]}
    made = Rule(user=1000, **{**all_of_it, **rule})  # type: ignore[arg-type]
    access = Access(AccessSection(rules=[made]))
    assert allowed(access, MEMBER, verb, **about) is may


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("verb", Permission)
def test_a_rule_without_verbs_is_about_cables_only(verb: Permission) -> None:
    """Who may create a network chooses the bridge that is behind its name."""
    access = Access(AccessSection(rules=[Rule(user=1000, nics=["*"], networks=["lab"])]))
    may = verb in (Permission.PLUG, Permission.UNPLUG, Permission.SET_LINK)
    assert allowed(access, MEMBER, verb, nic=NIC, network="lab") is may


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("said", [{"nics": ["*"]}, {"networks": ["*"]}, {}])
def test_what_a_rule_does_not_say_is_none(said: dict[str, list[str]]) -> None:
    access = Access(AccessSection(rules=[Rule(user=1000, **said)]))  # type: ignore[arg-type]
    assert not allowed(access, MEMBER, Permission.PLUG, nic=NIC, network="blue")
    assert not allowed(access, MEMBER, Permission.UNPLUG, nic=NIC, present="blue")
