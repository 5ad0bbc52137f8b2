"""All guests of libvirt on this host: what linkmgr knows of them, and what only libvirt does."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from linkmgr.aio.token_bucket import TimeBudget
from linkmgr.errors import LibvirtRefused, LinkmgrError
from linkmgr.libvirt.client.api_calls import DomainView
from linkmgr.libvirt.domains.domains import KnownDomains
from linkmgr.libvirt.domains.gateway import LibvirtApi
from linkmgr.libvirt.prepare.preconditions import KINDS, can_be_vm, rename_command
from linkmgr.libvirt.xml import monitor
from linkmgr.libvirt.xml.desired_cables import DesiredCables, desired_cables_of, read_document
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.interfaces import DomainNic, nics_of
from linkmgr.libvirt.xml.prepared_element import prepared_nics_of
from linkmgr.manager.manager import LinkManager
from linkmgr.model import DomainInfo, DomainNicInfo, LinkState, Nic, VmInfo
from linkmgr.text.untrusted import shell_command

log = logging.getLogger(__name__)

#: NICs of a domain that are listed, and characters of each text of one: its author may have written
#: thousands, and aliases and options of any length.
MAX_NICS, MAX_TEXT = 512, 300
_SOURCES = ("bridge", "network", "dev", "path")  # of ``<source>``, where libvirt's NIC leads


class DomainInventory:
    """The domains as they are at one moment.

    :param manager: knows the VMs.
    :param libvirt: ``None`` does without.
    :param budget: what reading the domains' XML may cost.
    """

    def __init__(
        self,
        manager: LinkManager,
        domains: KnownDomains,
        libvirt: LibvirtApi | None,
        budget: TimeBudget,
    ) -> None:
        self._domains = domains
        self._budget = budget
        self._libvirt = libvirt
        vms, nics = manager.snapshot()
        self._vms = {vm.name: vm for vm in vms}
        self._nics = {(nic.ref.vm, nic.ref.alias): nic for nic in nics}

    async def all(self) -> list[DomainInfo]:
        """All domains, by name. Without libvirt those that linkmgr has to do with.

        :raise LibvirtError: when libvirt is stopped or does not answer: some would be missing.
        """
        if self._libvirt is None or not self._libvirt.installed:
            return [
                self._unseen(each.name, each.uuid) for each in self._domains if each.applied_state
            ]
        looks = [await self._look_at(self._libvirt, each) for each in await self._libvirt.domains()]
        return [info for info in looks if info is not None]

    async def _look_at(self, libvirt: LibvirtApi, view: DomainView) -> DomainInfo | None:
        """Look at one domain: one that cannot be looked at hides no other."""
        domain = self._domains.by_uuid(view.uuid)
        if domain is not None and domain.running_hooks:  # libvirt would not answer
            return self._unseen(view.name, view.uuid)
        try:
            document = await self._read(libvirt, view, live=True)
            later = await self._prepared_later(libvirt, view, document)
            with self._budget.spending():
                info = self._of(view, document, later)
            if info.command is None and await self._is_old(libvirt, view, document):
                info = replace(info, command=_command(view, "--refresh"))
        except LibvirtRefused as refused:
            gone = refused.no_domain
            return None if gone else self._unseen(view.name, view.uuid, view.state)
        except LinkmgrError:  # `check` says what is wrong
            return self._unseen(view.name, view.uuid, view.state)
        except Exception:
            log.exception("domain %s cannot be looked at", view.name)
            return self._unseen(view.name, view.uuid, view.state)
        return info

    async def _read(self, libvirt: LibvirtApi, view: DomainView, *, live: bool) -> Document:
        xml = await libvirt.xml(view.uuid, live=live)
        await asyncio.sleep(self._budget.wait)
        with self._budget.spending():
            return read_document(xml, view.name)

    async def _prepared_later(
        self, libvirt: LibvirtApi, view: DomainView, document: Document
    ) -> set[str]:
        """Aliases and addresses of the NICs that were prepared since the domain was started."""
        here = prepared_nics_of(document)
        if not view.active or not view.persistent:
            return set()
        if all(nic.alias in here for nic in nics_of(document)):
            return set()
        try:
            stored = await self._read(libvirt, view, live=False)
        except LinkmgrError:  # it is gone by now, say
            return set()
        later = [nic for nic in nics_of(stored) if nic.alias in prepared_nics_of(stored)]
        return {nic.alias for nic in later} | {nic.mac for nic in later if nic.mac}

    async def _is_old(self, libvirt: LibvirtApi, view: DomainView, document: Document) -> bool:
        """Whether it was prepared by an older linkmgr, or damaged, and is so at its next start."""
        if not monitor.is_outdated(document) or not view.persistent:
            return False
        if not view.active:
            return True
        try:
            return monitor.is_outdated(await self._read(libvirt, view, live=False))
        except LinkmgrError:  # it is gone by now, say
            return False

    def _of(self, view: DomainView, document: Document, later: set[str]) -> DomainInfo:
        name, prepared = view.name, prepared_nics_of(document)
        try:
            cables = desired_cables_of(document)
        except LinkmgrError:  # `check` says what is wrong
            cables = DesiredCables()
        vm = self._vms.get(name) if view.active else None
        interfaces = nics_of(document)[:MAX_NICS]
        nics = tuple(
            replace(
                self._nic(name if vm else "", each, each.alias in prepared, cables),
                restart=each.alias not in prepared and bool({each.alias, each.mac} & later),
            )
            for each in interfaces
        )
        could = [
            nic for nic, info in zip(interfaces, nics, strict=True)
            if not info.prepared and not info.restart and nic.kind in KINDS
        ]  # fmt: skip
        return DomainInfo(
            name=name,
            uuid=view.uuid,
            state=str(view.state),
            transport=vm.transport if vm else None,
            prepared=all(nic.prepared for nic in nics),
            command=_command(view) if could else None,
            nics=nics,
        )

    def _nic(self, vm: str, nic: DomainNic, prepared: bool, cables: DesiredCables) -> DomainNicInfo:
        seen = self._nics.get((vm, nic.alias))
        link = nic.element.get("link", "state") or "up"
        wanted = cables.by_nic.get(nic.alias)
        if seen is not None:
            return _of_linkmgr(seen, prepared, _cut(str(wanted)) if wanted else None)
        source = next(
            (found for each in _SOURCES if (found := nic.element.get("source", each))), None
        )
        return DomainNicInfo(
            alias=_cut(nic.alias),
            mac=_cut(nic.mac),
            model=_cut(nic.element.get("model", "type")) or "?",
            prepared=prepared,
            network=None if prepared else _cut(f"{nic.kind} {source}" if source else nic.kind),
            link=None if prepared else LinkState(link) if link in set(LinkState) else None,
            device=None if prepared else _cut(nic.element.get("target", "dev")) or None,
            wanted=_cut(str(wanted)) if wanted else None,
        )

    def _unseen(self, name: str, uuid: str, state: str = "unknown") -> DomainInfo:
        """A domain of which libvirt says nothing now, or nothing that can be read."""
        vm: VmInfo | None = self._vms.get(name)
        nics = [nic for (owner, _), nic in self._nics.items() if owner == name]
        made = tuple(_of_linkmgr(nic, nic.wiring is not None, None) for nic in nics)
        transport = vm.transport if vm else None
        return DomainInfo(name, uuid, str(state), transport, True, None, made)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."


def _of_linkmgr(nic: Nic, prepared: bool, wanted: str | None) -> DomainNicInfo:
    here = nic.connection
    return DomainNicInfo(
        alias=nic.ref.alias,
        mac=nic.mac,
        model=nic.model,
        prepared=prepared,
        wiring=nic.wiring,
        state=nic.state,
        network=str(here.port) if here else None,
        link=nic.link,
        device=here.device if here else None,
        wanted=wanted,
    )


def _command(view: DomainView, option: str = "--define") -> str | None:
    """The command that brings the domain nearer to being prepared, if one can."""
    if can_be_vm(view.name):
        # virsh takes digits for an id, and linkmgr what ends with .xml for a file.
        plain = not view.name.isdigit() and not view.name.endswith(".xml")
        return shell_command("linkmgr prepare", view.name if plain else view.uuid, option)
    return None if view.active else rename_command(view.name)
