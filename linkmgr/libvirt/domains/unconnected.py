"""Running, prepared guests whose QEMU has not connected: they cannot be plugged."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Collection

from linkmgr.aio.token_bucket import TimeBudget
from linkmgr.errors import LibvirtRefused, LinkmgrError
from linkmgr.libvirt.client.api_calls import DomainView
from linkmgr.libvirt.domains.gateway import LibvirtApi
from linkmgr.libvirt.xml import monitor
from linkmgr.libvirt.xml.desired_cables import read_document
from linkmgr.libvirt.xml.prepared_element import prepared_nics_of
from linkmgr.model import Finding
from linkmgr.state.journal import started_at
from linkmgr.text.untrusted import shell_command

log = logging.getLogger(__name__)

#: After its start, and that of the service, in which a QEMU has connected: it tries each second.
CONNECT_GRACE_S = 5.0
CHECK_TIMEOUT_S = 2.0  #: seconds for which libvirt is asked; who checks does not wait for it


async def find_unconnected(
    libvirt: LibvirtApi | None, known: Collection[str], budget: TimeBudget
) -> list[Finding]:
    """Find prepared guests that run and whose QEMU has not connected, in the time there is.

    :param known: names of the guests that linkmgr takes care of, or says already why not.
    :param budget: what reading the domains' XML may cost.
    """
    if libvirt is None or not libvirt.connected:
        return []
    found: list[Finding] = []
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            for view in await libvirt.domains():
                if not view.active or view.name in known or _is_new(view.pid):
                    continue
                found += await _look(libvirt, view, budget)
    except (LinkmgrError, TimeoutError):
        return found
    return found


async def _look(libvirt: LibvirtApi, view: DomainView, budget: TimeBudget) -> list[Finding]:
    """Look at one guest. One that cannot be looked at hides no other."""
    try:
        xml = await libvirt.xml(view.uuid, live=True)
    except LibvirtRefused as error:  # as of XML that is too long for libvirt itself
        error.what = error.what.replace(view.uuid, view.name)
        return [] if error.no_domain else [_unreadable(view.name, error)]
    except LinkmgrError:  # libvirt is busy with it, say
        return []
    await asyncio.sleep(budget.wait)
    try:
        with budget.spending():
            document = read_document(xml, view.name)
            leak, prepared = monitor.find_leak(document), bool(prepared_nics_of(document))
    except LinkmgrError as error:
        return [_unreadable(view.name, error)]
    except Exception as error:
        log.exception("domain %s cannot be looked at", view.name)
        what = f"its XML cannot be read: {type(error).__name__}"
        return [Finding("error", view.name, what, "see the service's log")]
    if leak:
        return [_leak_finding(view.name, leak)]
    return [_unconnected(view.name)] if prepared else []


def _unreadable(name: str, error: LinkmgrError) -> Finding:
    return Finding(error.code, name, error.what, error.hint or "look at its XML")


def _is_new(pid: int | None) -> bool:
    began = None if pid is None else started_at(pid)
    if began is None:
        return False
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return now - began / os.sysconf("SC_CLK_TCK") < CONNECT_GRACE_S


def _leak_finding(name: str, leak: monitor.Leak) -> Finding:
    return Finding(
        "guest-could-speak",
        name,
        f"its guest could speak to the service as its QEMU, through {leak.what}; so its QEMU is "
        "not listened to, and its NICs have no cable",
        leak.hint,
    )


def _unconnected(name: str) -> Finding:
    return Finding(
        "guest-not-connected",
        name,
        "it runs and its NICs are prepared, but its QEMU has not dialled, so they have no cable",
        "see in the service's log whether its call was refused, and whether the service listens on "
        f"the socket that '{shell_command('virsh dumpxml', name)}' names; else shut it down, run "
        f"'{shell_command('linkmgr prepare', name, '--define')}', with '--monitor PATH' if that "
        "socket is not the service's own, and start it again",
    )
