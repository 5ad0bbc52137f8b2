"""What goes over the API, for its document and for reading requests.

Answers are made by `linkmgr.state.codec`; the models of answers here describe them in the OpenAPI
document, and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Header, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from linkmgr.api import ORPHAN_MIN_AGE_S
from linkmgr.events import EventKind
from linkmgr.model import Affects, Drift, LinkState, MonitorTransport, NicState, NotifyMode, VmState
from linkmgr.service.config.schema import Permission
from linkmgr.service.http import examples
from linkmgr.service.operations import Phase

# The form of a name is told here, and checked with a better error elsewhere.
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_FORM: dict[str, Any] = {"pattern": f"^{_NAME}$"}


def _of(example: str) -> dict[str, Any]:
    return {"json_schema_extra": _FORM, "examples": [example]}


def _of_nic(example: str) -> dict[str, Any]:
    mac = "[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"
    return {"json_schema_extra": {"pattern": f"^({_NAME}|{mac})$"}, "examples": [example]}


Name = Annotated[str, Field(max_length=200, json_schema_extra=_FORM)]
VmPath = Annotated[str, Path(description="name of a VM", **_of("web1"))]
AliasPath = Annotated[
    str, Path(description="QEMU's id of a NIC, or its MAC address or device", **_of_nic("net0"))
]
NicPath = Annotated[
    str,
    Path(
        description="a NIC by its MAC address, its device, or its VM if that has one NIC",
        **_of_nic("52:54:00:12:34:56"),
    ),
]
NetworkPath = Annotated[str, Path(description="name of a network", **_of("blue"))]
PortPath = Annotated[str, Path(description="name of a port", **_of("p7"))]
NetworkQuery = Annotated[Name | None, Query(description="of one network only", examples=["blue"])]
OperationPath = Annotated[
    str, Path(description="id of an operation", examples=[examples.OPERATION_ID])
]
LastEventId = Annotated[
    str | None, Header(description="the last event it has", examples=[examples.OPERATION_ID])
]
_AFFECTS = "of a guest of libvirt: what runs, what holds from its next start on, or both"
AffectsQuery = Annotated[Affects, Query(description=_AFFECTS, examples=["persistent"])]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _examples(
    *shown: Mapping[str, Any], extra: Literal["forbid", "allow"] = "forbid"
) -> ConfigDict:
    return ConfigDict(extra=extra, json_schema_extra={"examples": [dict(each) for each in shown]})


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
    notify: NotifyMode = NotifyMode.AUTO
    affects: Annotated[Affects, Field(description=_AFFECTS)] = Affects.LIVE


class SetLink(_Form):
    """What the guest is to see as carrier."""

    model_config = _examples({"state": "down"})

    state: LinkState
    affects: Annotated[Affects, Field(description=_AFFECTS)] = Affects.LIVE


class Collect(_Form):
    """Which orphan devices are to be removed."""

    model_config = _examples({"older_than": 60, "dry_run": True})

    older_than: Annotated[float, Field(ge=0, allow_inf_nan=False)] = ORPHAN_MIN_AGE_S
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

    model_config = _examples(examples.NETWORK)

    name: str
    driver: str
    options: dict[str, Any]
    drift: Drift


class PortForm(_Form):
    """A port; an implied one is named after its NIC."""

    model_config = _examples(examples.PORT)

    network: NetworkForm
    name: str
    options: dict[str, Any]
    implied: bool


class NetworkInfoForm(_Form):
    """A network, its created ports, the NICs on it, and what a plug would fail for now."""

    model_config = _examples(examples.NETWORK_INFO)

    network: NetworkForm
    ports: list[PortForm]
    nics: list[str]
    missing: str | None


class EndpointForm(BaseModel):
    """Where a network can be reached; the other members depend on the kind."""

    model_config = _examples(examples.ENDPOINT, extra="allow")

    kind: str


class ConnectionForm(_Form):
    """A NIC, the port that it is plugged into, and the device between them."""

    model_config = _examples(examples.CONNECTION)

    nic: str
    port: PortForm
    endpoint: EndpointForm
    attachment: str
    device: str
    since: datetime


class NicForm(_Form):
    """A NIC as it is now."""

    model_config = _examples(examples.NIC, examples.UNPLUGGED)

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

    model_config = _examples(examples.VM)

    name: str
    qmp: str
    state: VmState
    since: datetime
    nics: list[str]
    transport: MonitorTransport
    running: bool | None


class OutcomeForm(_Form):
    """What a verb did; the timings are milliseconds per step, the notes sentences for a person."""

    model_config = _examples(examples.OUTCOME, examples.UNCHANGED)

    nic: NicForm
    changed: bool
    timings: dict[str, float]
    notes: list[str]


class DomainNicForm(_Form):
    """A NIC of a guest of libvirt; state and wiring are of one that linkmgr takes care of."""

    model_config = _examples(examples.DOMAIN_NIC)

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
    restart: bool


class DomainForm(_Form):
    """A guest of libvirt on this host, and the command that would prepare it."""

    model_config = _examples(examples.DOMAIN)

    name: str
    uuid: str
    state: str
    transport: MonitorTransport | None
    prepared: bool
    command: str | None
    nics: list[DomainNicForm]


class FindingForm(_Form):
    """Something that is not as it should be."""

    model_config = _examples(examples.FINDING)

    code: str
    subject: str
    what: str
    hint: str


class OrphanDeviceForm(_Form):
    """A device with our tag that nothing recorded, and why it was left alone if it was.

    Where a dry run says nothing of that, it would have been removed.
    """

    model_config = _examples(examples.ORPHAN, examples.ORPHAN_IN_USE)

    device: str
    owner: str
    id: str
    seen: float
    removed: bool
    error: str | None


class ProblemForm(BaseModel):
    """An RFC 9457 problem document."""

    model_config = _examples(examples.PROBLEM, extra="allow")

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

    model_config = _examples(
        examples.OPERATION_UNDER_WAY, examples.OPERATION, examples.OPERATION_FAILED
    )

    id: str
    verb: Permission
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

    model_config = _examples(examples.EVENT)

    kind: Annotated[str, Field(description="one of " + ", ".join([*EventKind, "reset"]))]
    subject: str
    details: dict[str, Any]
    at: datetime


class ChangedAnswer(_Form):
    """Whether anything was changed."""

    model_config = _examples(examples.CHANGED)

    changed: bool


class VmList(_Form):
    """All VMs."""

    model_config = _examples({"vms": [examples.VM]})

    vms: list[VmForm]


class NicList(_Form):
    """NICs."""

    model_config = _examples({"nics": [examples.NIC, examples.UNPLUGGED]})

    nics: list[NicForm]


class DomainList(_Form):
    """All guests of libvirt on this host."""

    model_config = _examples({"domains": [examples.DOMAIN]})

    domains: list[DomainForm]


class NetworkList(_Form):
    """All networks."""

    model_config = _examples({"networks": [examples.NETWORK]})

    networks: list[NetworkForm]


class PortList(_Form):
    """Created ports."""

    model_config = _examples({"ports": [examples.PORT]})

    ports: list[PortForm]


class ConnectionList(_Form):
    """All NICs that are plugged."""

    model_config = _examples({"connections": [examples.CONNECTION]})

    connections: list[ConnectionForm]


class FindingList(_Form):
    """What is not as it should be; empty is good."""

    model_config = _examples({"findings": [examples.FINDING]})

    findings: list[FindingForm]


class OrphanList(_Form):
    """What was found, and whether it was removed."""

    model_config = _examples({"orphans": [examples.ORPHAN]})

    orphans: list[OrphanDeviceForm]


class OperationList(_Form):
    """Operations, the oldest first."""

    model_config = _examples({"operations": [examples.OPERATION]})

    operations: list[OperationForm]


class HookAnswered(_Form):
    """Whether libvirt should go on, and what was done or why not."""

    model_config = _examples(examples.HOOK_ANSWERED)

    ok: bool
    said: str


class HealthAnswer(_Form):
    """That the service answers."""

    model_config = _examples(examples.HEALTH)

    status: str
    version: str
