"""What goes over the API, for its document and for reading requests.

Answers are made by `linkmgr.jsonform`; the models of answers here describe them in the OpenAPI
document, and a test holds the two together.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

from linkmgr.events import EventKind
from linkmgr.model import Affects, Drift, LinkState, NicState, Notify, Transport, VmState
from linkmgr.protocol import STRAY_SECONDS
from linkmgr.service.config import Verb
from linkmgr.service.operations import Phase

# The form of a name is told here, and checked with a better error elsewhere.
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_FORM: dict[str, Any] = {"pattern": f"^{_NAME}$"}
Name = Annotated[str, Field(max_length=200, json_schema_extra=_FORM)]
PathName = Annotated[str, Path(json_schema_extra=_FORM)]
_AFFECTS = "of a guest of libvirt: what runs, what holds from its next start on, or both"
AffectsQuery = Annotated[Affects, Query(description=_AFFECTS)]
_NIC = "web1/net0"
_SINCE = "2026-01-31T12:00:00+00:00"


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _examples(*examples: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": list(examples)})


# ---------------------------------------------------------------------- requests


class AddVm(_Form):
    """A running QEMU to take charge of."""

    model_config = _examples({"name": "web1", "qmp": "/run/web1.qmp"})

    name: Name
    qmp: Annotated[
        str,
        Field(
            max_length=107,
            description="absolute path of its monitor socket, or libvirt: with the name or uuid "
            "of a domain",
            json_schema_extra={"pattern": "^(/|libvirt:)."},
        ),
    ]


class CreateNetwork(_Form):
    """A network to describe."""

    model_config = _examples({"name": "blue", "driver": "bridge", "options": {"bridge": "br0"}})

    name: Name
    driver: Name
    drift: Drift = Drift.REPAIR
    options: dict[str, Any] = {}


class CreatePort(_Form):
    """A port to describe."""

    model_config = _examples({"network": "blue", "name": "p7", "options": {"isolated": True}})

    network: Name
    name: Name
    options: dict[str, Any] = {}


class Plug(_Form):
    """Where a NIC is to be plugged into."""

    model_config = _examples(
        {"target": "blue"},
        {"target": "blue:p7", "notify": "announce", "affects": "live"},
    )

    target: Annotated[
        str,
        Field(
            max_length=200,
            description="NETWORK or NETWORK:PORT",
            json_schema_extra={"pattern": f"^{_NAME}(:{_NAME})?$"},
        ),
    ]
    notify: Notify = Notify.AUTO
    affects: Annotated[Affects, Field(description=_AFFECTS)] = Affects.LIVE


class SetLink(_Form):
    """What the guest is to see as carrier."""

    model_config = _examples({"state": "down"})

    state: LinkState
    affects: Annotated[Affects, Field(description=_AFFECTS)] = Affects.LIVE


class Collect(_Form):
    """Which strays are to be removed."""

    model_config = _examples({"older_than": 60, "dry_run": True})

    older_than: Annotated[float, Field(ge=0, allow_inf_nan=False)] = STRAY_SECONDS
    dry_run: bool = False


class HookCall(_Form):
    """What libvirt's hook was called with; see libvirt's own documentation of hooks."""

    model_config = _examples(
        {"operation": "prepare", "sub_operation": "begin", "extra": "-", "name": "web1",
         "xml": "<domain type='kvm'><name>web1</name></domain>"}
    )  # fmt: skip

    operation: Annotated[str, Field(max_length=64)]
    sub_operation: Annotated[str, Field(max_length=64)] = ""
    extra: Annotated[str, Field(max_length=4096)] = ""
    name: Annotated[str, Field(max_length=4096)] = ""
    xml: str = ""


# ---------------------------------------------------------------------- answers


class NetworkForm(_Form):
    """A network."""

    model_config = _examples(
        {"name": "blue", "driver": "bridge", "options": {"bridge": "br0"}, "drift": "repair"}
    )

    name: str
    driver: str
    options: dict[str, Any]
    drift: Drift


class PortForm(_Form):
    """A port; an implied one is named after its NIC."""

    network: NetworkForm
    name: str
    options: dict[str, Any]
    implied: bool


class EndpointForm(BaseModel):
    """Where a network can be reached; the other members depend on the kind."""

    model_config = ConfigDict(extra="allow")

    kind: str


class ConnectionForm(_Form):
    """A NIC, the port that it is plugged into, and the device between them."""

    nic: str
    port: PortForm
    endpoint: EndpointForm
    attachment: str
    device: str
    since: datetime


class NicForm(_Form):
    """A NIC as it is now."""

    model_config = _examples(
        {
            "ref": _NIC, "model": "virtio-net-pci", "mac": "52:54:00:12:34:56", "mtu": 1500,
            "state": "unplugged", "link": "down", "wanted_link": "up", "wiring": "hub",
            "since": _SINCE, "connection": None,
        }
    )  # fmt: skip

    ref: str
    model: str
    mac: str
    mtu: int
    state: NicState
    link: LinkState | None
    wanted_link: LinkState
    wiring: str | None
    since: datetime
    connection: ConnectionForm | None


class VmForm(_Form):
    """A VM as it is now."""

    model_config = _examples(
        {"name": "web1", "qmp": "/run/web1.qmp", "state": "answers", "since": _SINCE,
         "nics": [_NIC], "transport": "socket", "running": True}
    )  # fmt: skip

    name: str
    qmp: str
    state: VmState
    since: datetime
    nics: list[str]
    transport: Transport
    running: bool | None


class OutcomeForm(_Form):
    """What a verb did; the timings are milliseconds per step, the notes sentences for a person."""

    nic: NicForm
    changed: bool
    timings: dict[str, float]
    notes: list[str]


class DomainNicForm(_Form):
    """A NIC of a guest of libvirt; state and wiring are of one that linkmgr takes care of."""

    alias: str
    mac: str
    model: str
    prepared: bool
    wiring: str | None
    state: NicState | None
    network: str | None
    link: LinkState | None
    device: str | None
    wanted: str | None


class DomainForm(_Form):
    """A guest of libvirt on this host, and the command that would prepare it."""

    model_config = _examples(
        {
            "name": "web1", "uuid": "c0ffee00-1111-2222-3333-444455556666", "state": "running",
            "transport": "dials", "prepared": True, "command": None,
            "nics": [
                {
                    "alias": "ua-net0", "mac": "52:54:00:12:34:56", "model": "virtio-net-pci",
                    "prepared": True, "wiring": "hub", "state": "plugged", "network": "blue",
                    "link": "up", "device": "web1-net0", "wanted": "plugged into blue, link up",
                }
            ],
        }
    )  # fmt: skip

    name: str
    uuid: str
    state: str
    transport: Transport | None
    prepared: bool
    command: str | None
    nics: list[DomainNicForm]


class FindingForm(_Form):
    """Something that is not as it should be."""

    model_config = _examples(
        {"code": "device-gone", "subject": _NIC, "what": "its device lm0 does not exist any more",
         "hint": "unplug it and plug it again"}
    )  # fmt: skip

    code: str
    subject: str
    what: str
    hint: str


class StrayForm(_Form):
    """A device with our mark that nothing recorded."""

    device: str
    owner: str
    id: str
    seen: float
    removed: bool
    error: str | None


class ProblemForm(BaseModel):
    """An RFC 9457 problem document."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:linkmgr:error:unknown-network",
                    "title": "No network of that name was created",
                    "status": 404,
                    "detail": "web1/net0: there is no network green. web1/net0 is unplugged. "
                    "To do: create it first; the networks are: blue",
                    "code": "unknown-network",
                    "what": "there is no network green",
                    "hint": "create it first; the networks are: blue",
                    "nic": _NIC,
                    "state": "unplugged",
                }
            ]
        },
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    what: str
    hint: str | None
    nic: str | None
    state: str | None


class OperationForm(_Form):
    """A change, under way or done."""

    id: str
    verb: Verb
    subject: str
    uid: int
    state: Phase
    started: datetime
    ended: datetime | None
    ms: float | None
    result: dict[str, Any] | None
    problem: ProblemForm | None


class EventForm(_Form):
    """One thing that happened, or ``reset``: events were missed, look at everything again."""

    model_config = _examples(
        {"kind": "plugged", "subject": _NIC, "details": {"port": "blue"}, "at": _SINCE}
    )

    kind: Annotated[str, Field(description="one of " + ", ".join([*EventKind, "reset"]))]
    subject: str
    details: dict[str, Any]
    at: datetime


class Changed(_Form):
    """Whether anything was changed."""

    changed: bool


class Vms(_Form):
    """All VMs."""

    vms: list[VmForm]


class Nics(_Form):
    """NICs."""

    nics: list[NicForm]


class Domains(_Form):
    """All guests of libvirt on this host."""

    domains: list[DomainForm]


class Networks(_Form):
    """All networks."""

    networks: list[NetworkForm]


class Ports(_Form):
    """Created ports."""

    ports: list[PortForm]


class Connections(_Form):
    """All NICs that are plugged."""

    connections: list[ConnectionForm]


class Findings(_Form):
    """What is not as it should be; empty is good."""

    findings: list[FindingForm]


class Strays(_Form):
    """What was found, and whether it was removed."""

    strays: list[StrayForm]


class OperationList(_Form):
    """Operations, the oldest first."""

    operations: list[OperationForm]


class HookAnswered(_Form):
    """Whether libvirt should go on, and what was done or why not."""

    model_config = _examples({"ok": True, "said": "web1/ua-net0 is on blue"})

    ok: bool
    said: str


class Health(_Form):
    """That the service answers."""

    status: str
    version: str
