"""What libvirt's hook tells. libvirt waits for the answer: nothing here asks libvirt.

The hook brings the domain's XML, so that what it asks for is known without libvirt, and it can
wait until the cables are in. Without a hook all of this works a little later.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from linkmgr.errors import BadMetadata, CannotPrepare, LinkmgrError
from linkmgr.libvirt.domains.applier import in_a_line, summary
from linkmgr.libvirt.domains.domains import Domain, KnownDomains
from linkmgr.libvirt.domains.inline_networks import InlineNetworks
from linkmgr.libvirt.domains.migration import bind_for_migration
from linkmgr.libvirt.xml import monitor
from linkmgr.libvirt.xml.desired_cables import DesiredCables, desired_cables_of, read_document
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.interfaces import domain_name
from linkmgr.libvirt.xml.prepared_element import prepared_nics_of
from linkmgr.manager.manager import LinkManager
from linkmgr.model import VmState
from linkmgr.text.untrusted import shell_command

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.1  #: seconds between two looks whether there is anything to wait for

#: Operations of libvirt's hook before a process runs; each brings what that process is to have.
_BEFORE_START = {"prepare", "start", "restore", "migrate"}


@dataclass(frozen=True)
class HookAnswer:
    """What the hook is answered.

    :param ok: whether the domain may be started as it is.
    :param said: what is wrong, or what was done.
    """

    ok: bool
    said: str


class HookHandler:
    """Handles the calls of libvirt's hook.

    :param domains: those that linkmgr has to do with.
    :param manager: knows the VMs and the port bindings.
    :param inline_networks: makes those that a cable describes.
    """

    def __init__(
        self, domains: KnownDomains, manager: LinkManager, inline_networks: InlineNetworks
    ) -> None:
        self._domains = domains
        self._manager = manager
        self._inline_networks = inline_networks

    async def on_hook(
        self, operation: str, sub_operation: str, extra: str, domain_xml: str
    ) -> HookAnswer:
        """See `DomainController.on_hook`."""
        del extra
        try:
            document = read_document(domain_xml)
            uuid = document.root.find("uuid")
            if uuid is None:
                raise BadMetadata("the XML has no <uuid>", hint="see which hook called")
        except LinkmgrError as error:
            return HookAnswer(False, str(error))
        domain = self._domains.ensure(uuid.text.strip(), domain_name(document))
        domain.running_hooks += 1
        try:
            return await self._answer(domain, operation, sub_operation, document, domain_xml)
        except LinkmgrError as error:
            return HookAnswer(False, str(error))
        finally:
            domain.running_hooks -= 1

    async def _answer(
        self, domain: Domain, operation: str, sub_operation: str, document: Document, xml: str
    ) -> HookAnswer:
        if operation in _BEFORE_START:
            _check_monitor(document)
            domain.apply_finished.clear()
            domain.set_hook_xml(xml)
            if operation == "migrate":
                return await self._bind(domain, document)
            desired_cables_of(document)
            return HookAnswer(True, "its cables are plugged when it runs")
        if operation == "started":
            return await self._started(domain, document, xml)
        if operation in ("stopped", "release"):
            domain.set_hook_xml(None)
            await self._manager.bindings.release_all(domain.name)
            await self._wait_until_freed(domain)
            return HookAnswer(True, "nothing of it is left")
        return HookAnswer(True, f"nothing to be done at {operation} {sub_operation}")

    async def _bind(self, domain: Domain, document: Document) -> HookAnswer:
        """Bind a port for each cable of a guest that migrates here, or refuse the guest."""
        try:
            held = await bind_for_migration(self._manager.bindings, self._inline_networks, document)
        except LinkmgrError:
            domain.set_hook_xml(None)
            raise
        return HookAnswer(True, f"held for it: {', '.join(held) or 'nothing'}")

    async def _started(self, domain: Domain, document: Document, xml: str) -> HookAnswer:
        """Wait until the cables are in. An earlier call has unset `apply_finished`."""
        _check_monitor(document)
        try:
            wanted = desired_cables_of(document)
        except BadMetadata:
            wanted = DesiredCables()
            raise
        finally:
            # Only if we have not read this process's XML ourselves: ours may be newer.
            if domain.xml_read_for is None or not domain.xml_read_for.lives():
                domain.set_hook_xml(xml)
        if not wanted.by_nic or not prepared_nics_of(document):
            return HookAnswer(True, "it asks for no cables")
        while not domain.apply_finished.is_set():
            try:
                await asyncio.wait_for(domain.apply_finished.wait(), POLL_INTERVAL_S)
            except TimeoutError:
                if self._is_paused(domain):
                    return HookAnswer(True, "its cables are plugged when it is resumed")
        if domain.failures:
            return HookAnswer(False, summary(domain.failures, domain.name))
        said = [f"{domain.name}/{each.nic}: {each}" for each in wanted.by_nic.values()]
        return HookAnswer(True, in_a_line(said))

    async def _wait_until_freed(self, domain: Domain) -> None:
        """Wait until what the process held is free. Another one may come after that."""
        process = domain.applied_state.process if domain.applied_state else None
        while process and domain.applied_state and domain.applied_state.process == process:
            if process.lives():
                return  # it has not ended after all
            # `DomainController` does it as soon as it sees the end.
            await asyncio.sleep(POLL_INTERVAL_S / 5)
        if domain.applied_state is None:
            await self._domains.process_ended(domain)

    def _is_paused(self, domain: Domain) -> bool:
        return any(
            vm.name == domain.name and vm.state is VmState.ANSWERS and vm.running is False
            for vm in self._manager.snapshot()[0]
        )


def _check_monitor(document: Document) -> None:
    """Refuse a domain whose guest could speak as its QEMU; name one that is prepared as once.

    :raise CannotPrepare: through what, and what to do.
    """
    name, form = domain_name(document), monitor.find_monitor(document).form
    if leak := monitor.find_leak(document):
        raise CannotPrepare(
            f"domain {name}: its guest could speak to the service as its QEMU, through "
            f"{leak.what}; its NICs get no cables",
            hint=leak.hint,
        )
    if form is monitor.MonitorForm.COMMANDLINE:
        log.warning(
            "domain %s was prepared by an older linkmgr, and does not start with a QEMU of 10.2 or "
            "newer. To do: '%s'", name, shell_command("linkmgr prepare", name, "--refresh")
        )  # fmt: skip
