"""The verbs for libvirt's guests: now, from the next start on, or both, in virsh's words.

What is done to the guest that runs is also written into its live metadata, and what is to hold from
its next start on into its stored metadata; both through libvirt. A cable does not depend on that:
what cannot be written is said in the outcome's notes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import reduce

from linkmgr.errors import (
    Conflict,
    LibvirtError,
    LibvirtRefused,
    LinkmgrError,
    NotFound,
    UnknownNetwork,
    UnknownNic,
    UnknownVm,
)
from linkmgr.hypervisors.qemu.qmp.connector import inbound_address
from linkmgr.libvirt.domains.diagnose import explain_unknown_network, explain_unknown_vm
from linkmgr.libvirt.domains.domains import CablesEdit, DesiredState, Domain, KnownDomains, Process
from linkmgr.libvirt.domains.gateway import HookSafeLibvirt
from linkmgr.libvirt.domains.inline_networks import inline_network_of
from linkmgr.libvirt.xml.desired_cables import (
    CABLES_NAMESPACE,
    CABLES_PREFIX,
    DesiredCable,
    DesiredCables,
    desired_cables_of,
    read_document,
    render,
)
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.interfaces import nics_of
from linkmgr.libvirt.xml.prepared_element import prepared_nics_of
from linkmgr.manager.manager import LinkManager
from linkmgr.model import (
    DEFAULT_MTU,
    Affects,
    LinkState,
    Network,
    Nic,
    NicRef,
    NicState,
    NotifyMode,
    Outcome,
    Port,
    parse_choice,
)
from linkmgr.naming import NicCandidate, NicName, find_nic
from linkmgr.text.suggest import hint_for_unknown
from linkmgr.text.untrusted import shell_command

RESOLVE_TIMEOUT_S = 2.0  #: for which libvirt is asked for the NICs of a domain that does not run


class DomainVerbs:
    """Plugs NICs of libvirt's guests, and says so in their XML.

    :param manager: the verbs for guests that run.
    :param on_save_failed: called when the live XML could not be written; see `save_edits`.
    """

    def __init__(
        self,
        manager: LinkManager,
        domains: KnownDomains,
        gateway: HookSafeLibvirt,
        on_save_failed: Callable[[Domain, LinkmgrError], None],
    ) -> None:
        self._on_save_failed = on_save_failed
        self._manager = manager
        self._domains = domains
        self._gateway = gateway

    async def resolve(self, nic: str | NicRef) -> NicRef:
        """Which NIC a name means: as `LinkManager.resolve`; also one of a domain that is off.

        A domain that is off is named by its name: ``web1``, ``web1/52:54:00:12:34:56``.
        """
        try:
            return await self._manager.resolve(nic)
        except NotFound as error:
            name = NicName.parse(nic)
            vm = name.vm or name.word
            if found := await self._resolve_stored(name, vm):
                return found
            if isinstance(error, UnknownVm):
                raise await explain_unknown_vm(error, vm, self._domains, self._gateway) from None
            raise

    async def _resolve_stored(self, name: NicName, vm: str) -> NicRef | None:
        """A NIC of a domain that is off; ``None`` if libvirt has no such domain, or it no NIC."""
        domain = self._domains.by_name(vm)
        if (name.vm is None and name.is_mac) or (domain is not None and domain.running_hooks):
            return None
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                api = self._gateway.api
                view = await api.domain(vm)
                if view.name != vm or view.active:
                    return None
                document = read_document(await api.xml(view.uuid, live=False), vm)
        except (LinkmgrError, TimeoutError):
            return None
        nics = [
            NicCandidate(NicRef(vm, nic.alias), nic.mac) for nic in nics_of(document) if nic.alias
        ]
        return find_nic(name, nics, [vm]) if nics else None

    async def plug(
        self,
        nic: str | NicRef,
        target: str | Network | Port,
        *,
        notify: str | NotifyMode = NotifyMode.AUTO,
        uid: int | None = None,
        affects: str | Affects = Affects.LIVE,
    ) -> Outcome:
        """Plug a NIC; see `LinkManager.plug`.

        :param affects: the guest that runs, its next start, or both.
        :raise LinkmgrError: any of the tree; for the next start alone `LibvirtError` too.
        """
        how = parse_choice(NotifyMode, notify, "way to notify")
        ref = await self.resolve(nic)
        try:
            return await self._change(
                ref,
                affects,
                lambda: self._manager.plug(ref, target, notify=how, uid=uid),
                await self._edit_for(ref, target, how),
            )
        except UnknownNetwork as error:
            raise await explain_unknown_network(error, str(target), self._gateway) from None

    async def unplug(self, nic: str | NicRef, *, affects: str | Affects = Affects.LIVE) -> Outcome:
        """Take a NIC off its cable; see `LinkManager.unplug` and `plug`."""
        ref = await self.resolve(nic)
        return await self._change(
            ref,
            affects,
            lambda: self._manager.unplug(ref),
            lambda cables: cables.with_target(ref.alias, None),
        )

    async def set_link(
        self,
        nic: str | NicRef,
        state: str | LinkState,
        *,
        affects: str | Affects = Affects.LIVE,
    ) -> Outcome:
        """Set what the guest sees as carrier; see `LinkManager.set_link` and `plug`."""
        link = parse_choice(LinkState, state, "link state")
        ref = await self.resolve(nic)
        return await self._change(
            ref,
            affects,
            lambda: self._manager.set_link(ref, link),
            lambda cables: cables.with_link(ref.alias, link),
        )

    async def _edit_for(
        self, ref: NicRef, target: str | Network | Port, how: NotifyMode
    ) -> CablesEdit:
        """Make the edit that asks for a target; for an inline network by its description.

        Its network is there for as long as somebody is plugged into it, and not at the next start.
        """
        networks = await self._manager.networks()
        network = next((each for each in networks if each.name == str(target)), None)
        inline = inline_network_of(network) if network else None
        if inline is None:
            return lambda cables: cables.with_target(ref.alias, str(target), how)
        bare = DesiredCable(ref.alias, inline=inline, notify=how)
        return lambda cables: cables.with_cable(replace(bare, link=cables.get(ref.alias).link))

    # ------------------------------------------------------------------ how a verb runs

    async def _change(
        self,
        ref: NicRef,
        affects: str | Affects,
        live: Callable[[], Awaitable[Outcome]],
        edit: CablesEdit,
    ) -> Outcome:
        domain = self._domains.by_name(ref.vm)
        runs = domain if domain and self._runs_as_vm(domain) else None
        match parse_choice(Affects, affects, "thing to change"):
            case Affects.LIVE if runs:
                return await self._change_live(ref, runs, live, edit)
            case Affects.LIVE:
                return await self._change_unknown(ref, live)
            case Affects.CONFIG:
                return await self._change_config(ref, edit)
            case Affects.PERSISTENT if runs:
                return await self._change_both(ref, runs, live, edit)
            case Affects.PERSISTENT:
                return await self._change_config_of_idle(ref, live, edit)

    async def _change_both(
        self, ref: NicRef, domain: Domain, live: Callable[[], Awaitable[Outcome]], edit: CablesEdit
    ) -> Outcome:
        """Change the guest that runs, then its next start; that the latter failed is a note."""
        outcome = await self._change_live(ref, domain, live, edit)
        try:
            later = await self._change_config(ref, edit)
        except Conflict as error:
            note = f"it holds until the guest ends: {error.what}"
            return replace(outcome, notes=(*outcome.notes, note))
        except LinkmgrError as error:
            note = f"the next start is as before: {error}"
            return replace(outcome, notes=(*outcome.notes, note))
        changed = outcome.changed or later.changed
        return replace(outcome, changed=changed, notes=outcome.notes + later.notes)

    async def _change_config_of_idle(
        self, ref: NicRef, live: Callable[[], Awaitable[Outcome]], edit: CablesEdit
    ) -> Outcome:
        """Change the next start of a domain that is off; a guest without libvirt has none."""
        if not await self._is_without_libvirt(ref.vm):
            return await self._change_config(ref, edit)
        outcome = await live()
        note = (
            f"libvirt has no guest {ref.vm}, so nothing is kept for its next start: add it and "
            "plug it again then"
        )
        return replace(outcome, notes=(*outcome.notes, note))

    async def _change_unknown(self, ref: NicRef, live: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Change a guest of which no domain is known.

        :raise UnknownVm: says what its domain lacks, if libvirt has one of that name.
        """
        try:
            return await live()
        except UnknownVm as error:
            raise await explain_unknown_vm(error, ref.vm, self._domains, self._gateway) from None

    async def _change_live(
        self, ref: NicRef, domain: Domain, live: Callable[[], Awaitable[Outcome]], edit: CablesEdit
    ) -> Outcome:
        """Change the guest that runs, then what its live metadata says."""
        with contextlib.suppress(LinkmgrError):
            await self._gateway.after_hooks(domain)
        async with domain.lock:
            outcome = await live()
            notes: tuple[str, ...] = ()
            desired = (
                domain.applied_state.desired(ref.alias)
                if domain.applied_state
                else DesiredCable(ref.alias)
            )
            domain.unsaved_edits.append(edit)
            try:
                desired = (await self.save_edits(domain))[1].get(ref.alias)
            except LinkmgrError as error:
                if isinstance(error, LibvirtError) and not self._gateway.disabled:
                    self._on_save_failed(domain, error)
                else:  # no XML can say it, or none that is there: nothing to write later
                    domain.unsaved_edits.remove(edit)
                notes = (
                    f"the domain's live XML still asks for what it did before ({desired}): {error}",
                )
            # What an operator did holds: it is not undone by what was still to be done.
            if domain.applied_state is not None:
                domain.applied_state = domain.applied_state.with_states(
                    DesiredState(desired, done=True)
                )
            else:
                domain.changed_early.add(ref.alias)
            domain.failures.pop(ref.alias, None)
            await self._domains.save()
        return replace(outcome, notes=outcome.notes + notes)

    async def save_edits(
        self, domain: Domain, document: Document | None = None
    ) -> tuple[DesiredCables, DesiredCables]:
        """Write into a domain's live metadata what was done to its NICs. Its lock is held.

        :param document: its live XML, if that is known.
        :return: what the metadata asked for before, and now.
        :raise LinkmgrError: nothing was written, or libvirt did not say so; it is kept.
        """
        edits = list(domain.unsaved_edits)
        found = await self._write(
            domain, lambda cables: reduce(_apply, edits, cables), live=True, document=document
        )
        del domain.unsaved_edits[: len(edits)]
        return found

    def _runs_as_vm(self, domain: Domain) -> bool:
        """Whether the VM of its name is its QEMU, and not another one that was added under it."""
        vm = next((vm for vm in self._manager.snapshot()[0] if vm.name == domain.name), None)
        if vm is None or domain.applied_state is None:
            return vm is not None and vm.qmp == inbound_address(domain.uuid)
        known = self._manager.process_of(vm.name)
        return known is not None and Process(*known) == domain.applied_state.process

    async def _is_without_libvirt(self, vm: str) -> bool:
        """Whether it is a guest that was started without libvirt. Unsure, it is taken for none."""
        if not any(each.name == vm for each in self._manager.snapshot()[0]):
            return False
        if self._gateway.not_installed or self._gateway.disabled:
            return True
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                await self._gateway.api.domain(vm)
        except LibvirtRefused as error:
            return error.no_domain
        except (LibvirtError, TimeoutError):
            return False
        return False

    async def _change_config(self, ref: NicRef, edit: CablesEdit) -> Outcome:
        """Change what holds from the next start on.

        :raise UnknownVm: libvirt has no such domain.
        :raise Conflict: it is transient.
        :raise UnknownNic: the domain will have no such NIC.
        :raise LibvirtError: it could not be written.
        """
        try:
            view = None if self._gateway.not_installed else await self._gateway.api.domain(ref.vm)
        except LibvirtRefused as error:
            if not error.no_domain:
                raise
            view = None
        if view is None:
            raise UnknownVm(
                f"libvirt has no domain {ref.vm}, and only a guest of libvirt has a next start "
                "that linkmgr knows of",
                hint="leave --config out to change what runs; 'virsh list --all' lists the domains",
            )
        if not view.persistent:  # and libvirt would give the live XML as if it were stored
            raise Conflict(
                f"{view.name} is transient: it has no next start",
                hint="change what runs, without --config; 'virsh define' gives it a next start",
            )
        domain = self._domains.ensure(view.uuid, view.name)
        async with domain.lock:
            api = await self._gateway.after_hooks(domain)
            with _naming_domain(domain):
                document = read_document(await api.xml(domain.uuid, live=False), domain.name)
            nic, prepared = self._stored_nic(ref, document)
            before, after = await self._write(domain, edit, live=False, document=document)
        cable = after.get(ref.alias)
        notes = [f"from its next start on it is {cable}"]
        if cable.network and cable.network not in {
            each.name for each in await self._manager.networks()
        }:
            notes.append(f"network {cable.network} does not exist yet; it is plugged when it does")
        if not prepared:
            notes.append(
                f"{ref} is not prepared, so nothing can be plugged into it: run "
                f"'{shell_command('linkmgr prepare', ref.vm, '--define')}'"
            )
        return Outcome(nic, changed=before != after, notes=tuple(notes))

    async def _write(
        self, domain: Domain, edit: CablesEdit, *, live: bool, document: Document | None = None
    ) -> tuple[DesiredCables, DesiredCables]:
        """Edit the cables in a domain's metadata; what they were before, and are now.

        :raise LinkmgrError: nothing was written, or libvirt did not say so.
        """
        api = self._gateway.unless_hook(domain)
        with _naming_domain(domain):
            if document is None:
                document = read_document(await api.xml(domain.uuid, live=live), domain.name)
            before = desired_cables_of(document)
            after = edit(before)
            if after != before:
                await api.set_metadata(
                    domain.uuid, CABLES_NAMESPACE, CABLES_PREFIX,
                    render(after) if after.by_nic else None, live=live, config=not live,
                )  # fmt: skip
        return before, after

    def _stored_nic(self, ref: NicRef, document: Document) -> tuple[Nic, bool]:
        """A NIC of a domain's stored XML, and whether it is prepared.

        :raise UnknownNic: there is none of that alias.
        """
        found = next((each for each in nics_of(document) if each.alias == ref.alias), None)
        if found is None:
            there = [each.alias for each in nics_of(document) if each.alias]
            raise UnknownNic(
                f"domain {ref.vm} will have no NIC {ref.alias} at its next start",
                hint=hint_for_unknown(
                    ref.alias,
                    there,
                    "its NICs with an alias that stays are",
                    f"see '{shell_command('linkmgr prepare', ref.vm)}'",
                ),
            )
        prepared = ref.alias in prepared_nics_of(document)
        seen = next((nic for nic in self._manager.snapshot()[1] if nic.ref == ref), None)
        return seen or Nic(
            ref=ref,
            model=found.element.get("model", "type") or "?",
            mac=found.mac,
            mtu=DEFAULT_MTU,
            state=NicState.GONE,
            link=None,
            wanted_link=desired_cables_of(document).get(ref.alias).link,
            wiring="hub" if prepared else None,
            since=datetime.now(UTC),
        ), prepared


@contextlib.contextmanager
def _naming_domain(domain: Domain) -> Iterator[None]:
    """Have errors of libvirt speak of a domain by its name: it is asked by uuid."""
    try:
        yield
    except LibvirtError as error:
        error.what = error.what.replace(domain.uuid, domain.name)
        raise


def _apply(cables: DesiredCables, edit: CablesEdit) -> DesiredCables:
    return edit(cables)
