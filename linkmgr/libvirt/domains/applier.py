"""Does what a domain's XML asks for, NIC by NIC: what goes wrong with one hinders no other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from linkmgr.errors import (
    AlreadyExists,
    BadRequest,
    CannotAttach,
    LinkmgrError,
    UnknownNetwork,
    UnknownNic,
    UnknownPort,
)
from linkmgr.events import EventKind
from linkmgr.libvirt.domains.domains import ApplyFailure, DesiredState, Domain
from linkmgr.libvirt.domains.inline_networks import InlineNetworks
from linkmgr.libvirt.xml.desired_cables import DesiredCable
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.interfaces import DomainNic, nics_of
from linkmgr.libvirt.xml.prepared_element import prepared_nics_of
from linkmgr.manager.manager import LinkManager
from linkmgr.model import LinkState, Nic, NicRef, NicState, VmState
from linkmgr.text.untrusted import shell_command

log = logging.getLogger(__name__)

#: NICs of a domain that one line speaks of, and characters of each: who wrote the XML may have
#: written of many, and options of any length.
MAX_SHOWN, MAX_TEXT = 10, 300
#: Errors that do not pass by themselves, so they are not retried.
_NOT_RETRIED = (BadRequest, CannotAttach, UnknownNic, AlreadyExists)


class CableApplier:
    """Applies desired cables through the verbs.

    :param manager: plugs, unplugs and sets links.
    :param inline_networks: makes those that a cable describes.
    """

    def __init__(self, manager: LinkManager, inline_networks: InlineNetworks) -> None:
        self._manager = manager
        self._inline_networks = inline_networks

    def check_wiring(self, domain: Domain, document: Document) -> None:
        """Check that each prepared NIC is on its hub. One that is not is a failure."""
        for nic, seen in self._prepared(domain, document):
            if seen.state is NicState.UNMANAGED:
                self.note_failure(domain, nic.alias, _off_hub(nic, seen))

    async def wire(self, domain: Domain, document: Document) -> None:
        """Give each NIC that is on its hub the placeholder and the names that libvirt knows.

        Once for each process, when it runs, and after its cables: a guest that came from another
        host waits for these, and the placeholder takes longer.
        """
        nics = self._prepared(domain, document)
        await asyncio.gather(*(self._wire(*each) for each in nics))

    async def apply_pending(self, domain: Domain) -> bool:
        """Apply the pending states; return whether none is left that is retried.

        The domain's lock is held, and it has an applied state.
        """
        assert domain.applied_state is not None
        done = await asyncio.gather(
            *(self._apply(domain, each) for each in domain.applied_state.pending)
        )
        domain.applied_state = domain.applied_state.with_states(*done)
        left = [domain.failures.get(each.cable.nic) for each in domain.applied_state.pending]
        return not any(failure and failure.retried for failure in left)

    def note_failure(self, domain: Domain, alias: str, failure: ApplyFailure | None) -> None:
        """Note the failure of a NIC, or of the whole domain; publish it if it is a new one."""
        before = domain.failures.pop(alias, None)
        if failure is None:
            return
        domain.failures[alias] = failure
        if before and (before.code, before.what) == (failure.code, failure.what):
            return
        subject = domain.subject(alias, failure)
        log.warning("%s: %s. To do: %s", subject, failure.what, failure.hint)
        self._manager.publish(
            EventKind.NOT_APPLIED, subject,
            code=failure.code, what=failure.what, hint=failure.hint, waits=failure.retried,
        )  # fmt: skip

    async def _apply(self, domain: Domain, desired: DesiredState) -> DesiredState:
        cable = desired.cable
        here = domain.failures.get(cable.nic)
        if here is not None and here.code == _OFF_HUB:
            return desired  # it is told already, and nothing can be done
        try:
            await self._plug(NicRef(domain.name, cable.nic), cable)
        except LinkmgrError as error:
            if self._has_ended(domain):
                return desired  # whoever sees the end forgets this state, too
            if not isinstance(error, UnknownNic) or cable != DesiredCable(cable.nic):
                self.note_failure(domain, cable.nic, _failure_of(error, cable))
                return desired
            # Nothing is asked for a NIC that is not there.
        except Exception as error:
            log.exception("%s: a fault", domain.subject(cable.nic))
            what = f"the service failed: {type(error).__name__}"
            self.note_failure(
                domain, cable.nic, ApplyFailure("error", what, "look at the service's log")
            )
            return desired
        self.note_failure(domain, cable.nic, None)
        return replace(desired, done=True)

    async def _plug(self, ref: NicRef, cable: DesiredCable) -> None:
        if cable.link is LinkState.DOWN:  # before: the guest is not to see the new cable
            await self._manager.set_link(ref, cable.link)
        if cable.inline is not None:
            async with self._inline_networks.network(cable.inline) as network:
                await self._manager.plug(ref, network, notify=cable.notify)
        elif cable.target is not None:
            await self._manager.plug(ref, cable.target, notify=cable.notify)
        else:
            await self._manager.unplug(ref)
        if cable.link is LinkState.UP:  # behind: nor the old one, if that was hidden from it
            await self._manager.set_link(ref, cable.link)
        await self._inline_networks.remove_unused()

    async def _wire(self, nic: DomainNic, seen: Nic) -> None:
        if seen.state is NicState.UNMANAGED:
            return
        device = nic.element.get("target", "dev")
        try:
            await self._manager.ensure_backend_placeholder(seen.ref)
            if device:
                await self._manager.set_device_name(seen.ref, device)
        except LinkmgrError as error:  # libvirt shows less; the guest and its cable are well
            log.warning("%s: libvirt does not know its device: %s", seen.ref, error)
        except Exception:
            log.exception("%s: a fault", seen.ref)

    def _has_ended(self, domain: Domain) -> bool:
        vm = self._manager.snapshot_vm(domain.name)
        return vm is None or vm.state is VmState.GONE

    def _prepared(self, domain: Domain, document: Document) -> list[tuple[DomainNic, Nic]]:
        """The NICs that were prepared, in the XML and as they are."""
        nics = self._manager.snapshot()[1]
        seen = {each.ref.alias: each for each in nics if each.ref.vm == domain.name}
        prepared = prepared_nics_of(document).keys() & seen.keys()
        return [(nic, seen[nic.alias]) for nic in nics_of(document) if nic.alias in prepared]


_OFF_HUB = "not-on-hub"


def _off_hub(nic: DomainNic, seen: Nic) -> ApplyFailure:
    """Make the failure of a NIC that is prepared, and not wired as it was prepared."""
    where = (
        "the guest is isolated: its NIC leads to a tap that is on no network"
        if nic.kind == "ethernet"
        else f"the guest is connected as its <interface type='{nic.kind}'> says"
    )
    return ApplyFailure(
        _OFF_HUB,
        f"the NIC is not on its hub, though it was prepared for that: no qemu:override was in "
        f"force for its alias when the guest was started; {where}",
        f"run '{shell_command('linkmgr prepare', nic.domain, '--define')}', shut the guest "
        "down and start it again",
        seen.describe(),
        retried=False,
    )


def _failure_of(error: LinkmgrError, cable: DesiredCable) -> ApplyFailure:
    hint = error.hint
    if isinstance(error, UnknownNetwork | UnknownPort):
        hint = f"create it; {cable.nic} is plugged into it then by itself"
    retried = not isinstance(error, _NOT_RETRIED)
    return replace(ApplyFailure.of(error, retried=retried), hint=hint or "look at the log")


def summary(failures: Mapping[str, ApplyFailure], name: str) -> str:
    """All failures of a domain in one line."""
    return in_a_line(
        [f"{f'{name}/{alias}' if alias else name}: {each.what}" for alias, each in failures.items()]
    )


def in_a_line(texts: Sequence[str]) -> str:
    """Join texts about a domain's NICs for a log and a hook's answer: of many the first few."""
    more = [f"and {len(texts) - MAX_SHOWN} more"] if len(texts) > MAX_SHOWN else []
    return "; ".join([*(text[:MAX_TEXT] for text in texts[:MAX_SHOWN]), *more])
