"""How a NIC is named by a person: ``VM/ALIAS``, MAC address, device of the host, or VM alone.

What a QEMU says of itself (its aliases, its addresses) never decides over another VM's NIC: an
alias counts only behind its VM's name, and an address that two NICs claim is ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from linkmgr.errors import AmbiguousNic, BadName, UnknownNic, UnknownVm
from linkmgr.model import NicRef, check_name
from linkmgr.text.suggest import hint_for_unknown, join_names
from linkmgr.text.untrusted import quoted

_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_FORMS = "write VM/NIC, such as web1/net0, its MAC address, or its VM if that has one NIC"


@dataclass(frozen=True)
class NicName:
    """A NIC as it was named.

    :param vm: ``None`` where the word stands alone.
    :param word: an alias, a MAC address (lower case) or a device; alone it may be a VM.
    """

    vm: str | None
    word: str

    @classmethod
    def parse(cls, text: str | NicRef) -> Self:
        """Read any of the forms.

        :raise BadName: when it is none of them.
        """
        if isinstance(text, NicRef):
            return cls(text.vm, text.alias)
        vm, slash, word = text.rpartition("/") if isinstance(text, str) else ("", "", "")
        if not word:
            raise BadName(f"{quoted(text)} does not name a NIC", hint=_FORMS)
        if _MAC.fullmatch(word):
            word = word.lower()
        elif slash:
            check_name("NIC", word)
        else:
            check_name("NIC or VM", word)
        return cls(check_name("VM", vm) if slash else None, word)

    @property
    def is_mac(self) -> bool:
        """Whether the word is a MAC address, which no alias, device or VM can look like."""
        return ":" in self.word

    def __str__(self) -> str:
        return self.word if self.vm is None else f"{self.vm}/{self.word}"


@dataclass(frozen=True)
class NicCandidate:
    """A NIC with everything that it can be named by.

    :param mac: ``None`` while it is not known.
    :param device: of the host, that is there now.
    :param wanted_device: the name that its device is to have when it is plugged.
    """

    ref: NicRef
    mac: str | None = None
    device: str | None = None
    wanted_device: str | None = None


def find_nic(name: NicName, nics: Iterable[NicCandidate], vms: Iterable[str]) -> NicRef:
    """The one NIC that a name means. Its work grows with the number of NICs, and no faster.

    ``VM/ALIAS`` is returned as it is where there is no such NIC: the verb says so.

    :param vms: all VMs, also those without a NIC.
    :raise AmbiguousNic: when it means several; the hint names them.
    :raise NotFound: when it means none.
    """
    if name.vm is not None:
        return _in_vm(name, name.vm, [nic for nic in nics if nic.ref.vm == name.vm])
    nics = list(nics)
    if name.is_mac:
        found = _matching(nics, lambda nic: nic.mac == name.word)
        if not found:
            hint = "see 'linkmgr nics'; a guest that does not run is named VM/NIC"
            raise UnknownNic(f"no NIC of a running guest has the address {name}", hint=hint)
        return _the_only(found, f"the address {name}")
    known = set(vms)
    found = _matching(nics, lambda nic: nic.ref.vm == name.word)
    found |= _matching(nics, lambda nic: nic.device == name.word)
    # A name that a device is only to have counts where no device has it: who writes a domain's XML
    # could claim any.
    found = found or _matching(nics, lambda nic: nic.wanted_device == name.word)
    if found:
        return _the_only(found, str(name))
    if name.word in known:
        raise UnknownNic(f"VM {name} has no NICs", hint="see 'linkmgr nics'")
    raise UnknownVm(
        f"there is no VM {name}, and no NIC whose device has that name",
        hint=hint_for_unknown(name.word, known, "the VMs are", "add it first"),
    )


def _in_vm(name: NicName, vm: str, nics: list[NicCandidate]) -> NicRef:
    if not name.is_mac and NicRef(vm, name.word) in {nic.ref for nic in nics}:
        return NicRef(vm, name.word)
    found = _matching(nics, lambda nic: nic.mac == name.word)
    found |= _matching(nics, lambda nic: name.word in (nic.device, nic.wanted_device))
    if found:
        return _the_only(found, str(name))
    if not name.is_mac:
        return NicRef(vm, name.word)
    aliases = [nic.ref.alias for nic in nics]
    raise UnknownNic(
        f"VM {vm} has no NIC with the address {name.word}",
        hint=f"name one of its NICs: {join_names(aliases)}",
    )


def _matching(nics: Iterable[NicCandidate], matches: Callable[[NicCandidate], bool]) -> set[NicRef]:
    return {nic.ref for nic in nics if matches(nic)}


def _the_only(found: set[NicRef], what: str) -> NicRef:
    if len(found) > 1:
        raise AmbiguousNic(
            f"{what} may be any of {len(found)} NICs",
            hint=f"name one of them: {join_names([str(ref) for ref in found])}",
        )
    return next(iter(found))
