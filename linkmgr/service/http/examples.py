"""An example of each answer of the API, for its document: all are of the same host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Example = Mapping[str, Any]

NIC_REF = "web1/net0"
OPERATION_ID = "5f0c9d1e-42"
_SINCE = "2026-01-31T12:00:00+00:00"

CHANGED: Example = {"changed": True}

NETWORK: Example = {
    "name": "blue", "driver": "bridge", "options": {"bridge": "br0"}, "drift": "repair",
}  # fmt: skip

PORT: Example = {
    "network": NETWORK, "name": "p7", "options": {"isolated": True}, "implied": False,
}  # fmt: skip

NETWORK_INFO: Example = {
    "network": NETWORK, "ports": [PORT], "nics": [NIC_REF],
    "missing": "there is no bridge br0 yet: 'ip link add br0 type bridge' makes it, or create the "
    "network with create=true",
}  # fmt: skip

ENDPOINT: Example = {
    "kind": "bridge", "bridge": "br0", "mtu": 1500, "isolated": True, "hairpin": False,
    "learning": True,
}  # fmt: skip

CONNECTION: Example = {
    "nic": NIC_REF, "port": PORT, "endpoint": ENDPOINT, "attachment": "3f9a1c2e",
    "device": "lm3f9a1c2e", "since": _SINCE,
}  # fmt: skip

NIC: Example = {
    "ref": NIC_REF, "model": "virtio-net-pci", "mac": "52:54:00:12:34:56", "mtu": 1500,
    "state": "plugged", "link": "up", "wanted_link": "up", "wiring": "hub", "since": _SINCE,
    "connection": CONNECTION,
}  # fmt: skip

UNPLUGGED: Example = {
    **NIC, "ref": "web1/net1", "mac": "52:54:00:12:34:57", "state": "unplugged", "link": "down",
    "connection": None,
}  # fmt: skip

VM: Example = {
    "name": "web1", "qmp": "/run/web1.qmp", "state": "answers", "since": _SINCE,
    "nics": [NIC_REF, "web1/net1"], "transport": "socket", "running": True,
}  # fmt: skip

OUTCOME: Example = {
    "nic": NIC, "changed": True, "timings": {"offer": 0.4, "switch": 1.2}, "notes": [],
}  # fmt: skip

UNCHANGED: Example = {
    **OUTCOME,
    "changed": False,
    "timings": {},
    "notes": [
        "device lm3f9a1c2e is not on br0 any more, and network blue says to report that only. "
        "To do: unplug it and plug it again"
    ],
}

DOMAIN_NIC: Example = {
    "alias": "ua-net0", "mac": "52:54:00:12:34:58", "model": "virtio-net-pci", "prepared": True,
    "wiring": "hub", "state": "plugged", "network": "blue", "link": "up", "device": "db-net0",
    "wanted": "plugged into blue, link up", "restart": False,
}  # fmt: skip

DOMAIN: Example = {
    "name": "db", "uuid": "c0ffee00-1111-2222-3333-444455556666", "state": "running",
    "transport": "inbound", "prepared": True, "command": None, "nics": [DOMAIN_NIC],
}  # fmt: skip

FINDING: Example = {
    "code": "device-gone", "subject": NIC_REF,
    "what": "its device lm3f9a1c2e does not exist any more",
    "hint": "unplug it and plug it again",
}  # fmt: skip

ORPHAN: Example = {
    "device": "lm0000aaaa", "owner": "web9/net0", "id": "0000aaaa", "seen": 75.5, "removed": True,
    "error": None,
}  # fmt: skip

ORPHAN_IN_USE: Example = {**ORPHAN, "removed": False, "error": "in use by qemu-system-x86 (4711)"}

PROBLEM: Example = {
    "type": "urn:linkmgr:error:unknown-network",
    "title": "No network of that name was created",
    "status": 404,
    "detail": "web1/net0: there is no network green. web1/net0 is unplugged. "
    "To do: create it first; the networks are: blue",
    "code": "unknown-network",
    "what": "there is no network green",
    "hint": "create it first; the networks are: blue",
    "nic": NIC_REF,
    "state": "unplugged",
}

OPERATION: Example = {
    "id": OPERATION_ID, "verb": "plug", "subject": "web1/net0 blue:p7", "uid": 0, "state": "done",
    "started": _SINCE, "ended": "2026-01-31T12:00:00.021000+00:00", "ms": 21.0, "result": OUTCOME,
    "problem": None,
}  # fmt: skip

OPERATION_UNDER_WAY: Example = {
    **OPERATION, "state": "running", "ended": None, "ms": None, "result": None,
}  # fmt: skip

OPERATION_FAILED: Example = {
    **OPERATION, "subject": "web1/net0 green", "state": "failed", "result": None,
    "problem": PROBLEM,
}  # fmt: skip

EVENT: Example = {
    "kind": "plugged", "subject": NIC_REF, "details": {"port": "blue:p7"}, "at": _SINCE,
}  # fmt: skip

HOOK_ANSWERED: Example = {"ok": True, "said": "db/ua-net0 is on blue"}

HEALTH: Example = {"status": "ok", "version": "1.0.0"}

#: What is no JSON.
STREAM = (
    f"id: {OPERATION_ID}\nevent: plugged\n"
    f'data: {{"kind":"plugged","subject":"{NIC_REF}","details":{{"port":"blue:p7"}},'
    f'"at":"{_SINCE}"}}\n\n'
)
FIGURES = '# HELP linkmgr_nics NICs\n# TYPE linkmgr_nics gauge\nlinkmgr_nics{state="plugged"} 1.0\n'
