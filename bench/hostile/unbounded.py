"""``python -m bench.hostile.unbounded``: linkmgr with its bounds switched off.

Only to see that the measurement finds what the bounds prevent. A bound is a constant of its module,
looked up when it is used, so it is enough to set it before anything runs; an `AttributeError` here
says that one was renamed.
"""

from __future__ import annotations

import socket
from types import ModuleType

from linkmgr import cli
from linkmgr.aio import singleflight, unix_sockets
from linkmgr.hypervisors.qemu.qmp import event_budget, info_network, transport
from linkmgr.libvirt.xml import document
from linkmgr.service.auth import quota
from linkmgr.service.http import body_limit, fair_share

LOTS = 1 << 40
BOUNDS: dict[ModuleType, tuple[str, ...]] = {
    fair_share: ("USER_SHARE", "ALL_SHARE", "BURST_S", "MAX_WAITING_REQUESTS"),
    unix_sockets: ("USER_CONNECTIONS_SHARE", "REFUSALS_SHARE"),
    quota: ("USER_SHARE",),
    body_limit: ("MAX_BODY_BYTES",),
    document: ("MAX_BYTES", "MAX_ELEMENTS", "MAX_ATTRIBUTES", "MAX_DEPTH"),
    event_budget: ("MESSAGES_PER_SECOND", "BYTES_PER_SECOND", "EVENTS_PER_SECOND", "EVENTS_BURST",
             "FLOOD_TIMEOUT_S", "MESSAGES_PER_TURN"),
    transport: ("MAX_MESSAGE_BYTES", "MAX_MESSAGE_ITEMS", "UNMETERED_ANSWER_BYTES"),
    info_network: ("MAX_INFO_LINES", "MAX_NICS"),
}  # fmt: skip


def switch_off() -> None:
    """Set each bound to more than anybody reaches."""
    for module, names in BOUNDS.items():
        for name in names:
            getattr(module, name)
            setattr(module, name, LOTS)
    singleflight.REST_FACTOR = 0.0
    taking = unix_sockets.accept_connections.__kwdefaults__ or {}
    assert "burst" in taking
    taking["burst"] = LOTS
    for name, plain in (
        ("_refuse_descriptors", lambda _: False),
        ("recv", socket.socket.recv),
        ("close", socket.socket.close),
    ):
        getattr(unix_sockets.UnixSocket, name)
        setattr(unix_sockets.UnixSocket, name, plain)


if __name__ == "__main__":
    switch_off()
    cli.main()
