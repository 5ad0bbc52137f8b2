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
from linkmgr.libvirt.domain_xml import Document
from linkmgr.libvirt.domains import Domain, Trouble, Wish
from linkmgr.libvirt.metadata import DesiredCable
from linkmgr.libvirt.nics import DomainNic, nics_of
from linkmgr.libvirt.raw_ports import RawPorts
from linkmgr.libvirt.records import records_of
from linkmgr.manager import LinkManager
from linkmgr.model import LinkState, Nic, NicRef, NicState, VmState
from linkmgr.untrusted import shell_command

log = logging.getLogger(__name__)

#: NICs of a domain that one line speaks of, and characters of each: who wrote the XML may have
#: written of many, and options of any length.
MAX_TOLD, MAX_TEXT = 10, 300
#: Errors that do not pass by themselves.
_FINAL = (BadRequest, CannotAttach, UnknownNic, AlreadyExists)


class Applier:
    """Applies cables through the verbs.

    :param links: the verbs.
    :param raw: the networks of raw ports.
    """

    def __init__(self, links: LinkManager, raw: RawPorts) -> None:
        self._links = links
        self._raw = raw

    def look(self, domain: Domain, document: Document) -> None:
        """Look whether each prepared NIC is on its hub. One that is not is told as a trouble."""
        for nic, seen in self._prepared(domain, document):
            if seen.state is NicState.UNMANAGED:
                self.trouble(domain, nic.alias, _off_hub(nic, seen))

    async def wire(self, domain: Domain, document: Document) -> None:
        """Give each NIC that is on its hub the placeholder and the names that libvirt knows.

        Once for each process, when it runs, and after its cables: a guest that came from another
        host waits for these, and the placeholder takes longer.
        """
        nics = self._prepared(domain, document)
        await asyncio.gather(*(self._wire(*each) for each in nics))

    async def carry_out(self, domain: Domain) -> bool:
        """Do what is still to be done; whether all that waits is done now.

        The domain's lock is held, and it has a record.
        """
        assert domain.record is not None
        done = await asyncio.gather(*(self._one(domain, each) for each in domain.record.pending))
        domain.record = domain.record.put(*done)
        waiting = [domain.troubles.get(each.cable.nic) for each in domain.record.pending]
        return not any(trouble and trouble.waits for trouble in waiting)

    def trouble(self, domain: Domain, alias: str, trouble: Trouble | None) -> None:
        """Note what is wrong with a NIC, or with all of the domain; tell it if that is news."""
        before = domain.troubles.pop(alias, None)
        if trouble is None:
            return
        domain.troubles[alias] = trouble
        if before and (before.code, before.what) == (trouble.code, trouble.what):
            return
        subject = domain.subject(alias, trouble)
        log.warning("%s: %s. To do: %s", subject, trouble.what, trouble.hint)
        self._links.tell(
            EventKind.NOT_APPLIED, subject,
            code=trouble.code, what=trouble.what, hint=trouble.hint, waits=trouble.waits,
        )  # fmt: skip

    async def _one(self, domain: Domain, wish: Wish) -> Wish:
        cable = wish.cable
        here = domain.troubles.get(cable.nic)
        if here is not None and here.code == _OFF_HUB:
            return wish  # it is told already, and nothing can be done
        try:
            await self._plug(NicRef(domain.name, cable.nic), cable)
        except LinkmgrError as error:
            if self._has_ended(domain):
                return wish  # and whoever sees that forgets the wish, too
            if not isinstance(error, UnknownNic) or cable != DesiredCable(cable.nic):
                self.trouble(domain, cable.nic, _trouble(error, cable))
                return wish
            # Nothing is asked for a NIC that is not there.
        except Exception as error:
            log.exception("%s: a fault", domain.subject(cable.nic))
            what = f"the service failed: {type(error).__name__}"
            self.trouble(domain, cable.nic, Trouble("error", what, "look at the service's log"))
            return wish
        self.trouble(domain, cable.nic, None)
        return replace(wish, done=True)

    async def _plug(self, ref: NicRef, cable: DesiredCable) -> None:
        if cable.link is LinkState.DOWN:  # before: the guest is not to see the new cable
            await self._links.set_link(ref, cable.link)
        if cable.raw is not None:
            async with self._raw.network(cable.raw) as network:
                await self._links.plug(ref, network, notify=cable.notify)
        elif cable.target is not None:
            await self._links.plug(ref, cable.target, notify=cable.notify)
        else:
            await self._links.unplug(ref)
        if cable.link is LinkState.UP:  # behind: nor the old one, if that was hidden from it
            await self._links.set_link(ref, cable.link)
        await self._raw.tidy()

    async def _wire(self, nic: DomainNic, seen: Nic) -> None:
        if seen.state is NicState.UNMANAGED:
            return
        device = nic.element.get("target", "dev")
        try:
            await self._links.place_stub(seen.ref)
            if device:
                await self._links.name_device(seen.ref, device)
        except LinkmgrError as error:  # libvirt shows less; the guest and its cable are well
            log.warning("%s: libvirt does not know its device: %s", seen.ref, error)
        except Exception:
            log.exception("%s: a fault", seen.ref)

    def _has_ended(self, domain: Domain) -> bool:
        vm = self._links.seen_vm(domain.name)
        return vm is None or vm.state is VmState.GONE

    def _prepared(self, domain: Domain, document: Document) -> list[tuple[DomainNic, Nic]]:
        """The NICs that were prepared, in the XML and as they are."""
        nics = self._links.seen()[1]
        seen = {each.ref.alias: each for each in nics if each.ref.vm == domain.name}
        prepared = records_of(document).keys() & seen.keys()
        return [(nic, seen[nic.alias]) for nic in nics_of(document) if nic.alias in prepared]


_OFF_HUB = "not-on-hub"


def _off_hub(nic: DomainNic, seen: Nic) -> Trouble:
    """Make the trouble of a NIC that is prepared, and not wired as it was prepared."""
    where = (
        "the guest is isolated: its NIC leads to a tap that is on no network"
        if nic.kind == "ethernet"
        else f"the guest is connected as its <interface type='{nic.kind}'> says"
    )
    return Trouble(
        _OFF_HUB,
        f"the NIC is not on its hub, though it was prepared for that: no qemu:override was in "
        f"force for its alias when the guest was started; {where}",
        f"run '{shell_command('linkmgr prepare', nic.domain, '--define')}', shut the guest "
        "down and start it again",
        seen.describe(),
        waits=False,
    )


def _trouble(error: LinkmgrError, cable: DesiredCable) -> Trouble:
    hint = error.hint
    if isinstance(error, UnknownNetwork | UnknownPort):
        hint = f"create it; {cable.nic} is plugged into it then by itself"
    waits = not isinstance(error, _FINAL)
    return replace(Trouble.of(error, waits=waits), hint=hint or "look at the log")


def summary(troubles: Mapping[str, Trouble], name: str) -> str:
    """All troubles of a domain in one line."""
    return in_a_line(
        [f"{f'{name}/{alias}' if alias else name}: {each.what}" for alias, each in troubles.items()]
    )


def in_a_line(texts: Sequence[str]) -> str:
    """Join texts about a domain's NICs for a log and a hook's answer: of many the first few."""
    more = [f"and {len(texts) - MAX_TOLD} more"] if len(texts) > MAX_TOLD else []
    return "; ".join([*(text[:MAX_TEXT] for text in texts[:MAX_TOLD]), *more])
