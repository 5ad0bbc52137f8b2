"""Who may change what. Reading is for every local user; nothing here is asked for it."""

from __future__ import annotations

import grp
import logging
import os
import re
from dataclasses import dataclass

from linkmgr.aio.log_limit import LogLimit
from linkmgr.errors import Forbidden
from linkmgr.model import NicRef
from linkmgr.service.auth.peer import Peer
from linkmgr.service.auth.quota import Rank
from linkmgr.service.config.schema import AccessSection, Permission, Rule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Allowed:
    verbs: frozenset[Permission]
    nics: re.Pattern[str]
    networks: re.Pattern[str]

    @classmethod
    def of(cls, rule: Rule) -> _Allowed:
        return cls(frozenset(rule.verbs), _pattern(rule.nics), _pattern(rule.networks))


class Access:
    """Decides over changes.

    Root and the service's own user may do everything. A user with rules in the configuration may do
    what one of them allows, and nothing else. Everybody else must be in the group.

    :param section: of the configuration. Users and groups are looked up now, and not again.
    """

    def __init__(self, section: AccessSection) -> None:
        self._limit = LogLimit(__name__)
        self._group = section.group
        self._privileged = {0, os.geteuid()}
        self._rules: dict[int, list[_Allowed]] = {}
        for rule in section.rules:
            try:
                self._rules.setdefault(rule.uid, []).append(_Allowed.of(rule))
            except KeyError:  # gone since the file was checked
                log.warning("there is no user %s: the rule for it is not used", rule.user)
        try:
            self._gid: int | None = grp.getgrnam(section.group).gr_gid
        except KeyError:
            self._gid = None
            log.warning(
                "there is no group %s: only root may change anything, and users with rules in the "
                "configuration",
                section.group,
            )

    def is_privileged(self, peer: Peer) -> bool:
        """Whether it is root or the service's own user."""
        return peer.uid in self._privileged

    def rank(self, peer: Peer) -> Rank:
        """How many places a user may have, see `Quota`."""
        if self.is_privileged(peer):
            return Rank.PRIVILEGED
        known = peer.uid in self._rules or self._gid in peer.groups
        return Rank.MEMBER if known else Rank.STRANGER

    def may_use_sockets_of(self, peer: Peer, owner: int) -> bool:
        """Whether a monitor socket may be named to the service, which opens it with its own rights.

        Everybody's for root; for a user with rules his own, for he could give any other VM a name
        that they allow; for a member of the group those of root and of the service too.
        """
        if self.is_privileged(peer) or owner == peer.uid:
            return True
        return owner in self._privileged and peer.uid not in self._rules

    def check(
        self,
        peer: Peer,
        verb: Permission,
        *,
        nic: NicRef | str | None = None,
        network: str | None = None,
        present: str | None = None,
    ) -> None:
        """Let the change pass.

        :param nic: the NIC that it changes; for all NICs of a VM, its name; for all, ``*``.
        :param network: the network that it changes or plugs into; for all, ``*``.
        :param present: the network that the NIC is on: a rule for one network takes no guest off
            another.
        :raise Forbidden: says who may not do what, and what would let them.
        """
        if self.is_privileged(peer):
            return
        if peer.uid in self._rules:
            # No name contains a "*", so only a pattern for all NICs of the VM matches this one.
            wanted = f"{nic}/*" if isinstance(nic, str) else str(nic)
            if any(
                verb in rule.verbs
                and (nic is None or rule.nics.fullmatch(wanted))
                and all(
                    each is None or rule.networks.fullmatch(each) for each in (network, present)
                )
                for rule in self._rules[peer.uid]
            ):
                return
            on = f" while the NIC is on {present}" if present else ""
            why = f"no rule of the configuration allows it{on}"
            raise self._refusal(peer, verb, nic, network, why)
        if self._gid is None:
            raise self._refusal(peer, verb, nic, network, f"there is no group {self._group}")
        if self._gid not in peer.groups:
            raise self._refusal(peer, verb, nic, network, f"not in the group {self._group}")

    def _refusal(
        self, peer: Peer, verb: Permission, nic: NicRef | str | None, network: str | None, why: str
    ) -> Forbidden:
        about = " ".join(str(each) for each in (nic, network) if each and each != "*")
        self._limit.warning(
            f"uid {peer.uid}", "refused: %s wanted to %s %s: %s", peer, verb, about, why
        )
        return Forbidden(
            f"uid {peer.uid} may not {verb}{' ' if about else ''}{about}: {why}",
            hint=f"ask as root or as a member of the group {self._group}, or have a rule for this "
            "user put into the configuration",
        )


def _pattern(patterns: list[str]) -> re.Pattern[str]:
    """Only ``*`` is special, so that a ``*`` to be matched is matched by nothing else."""
    each = (".*".join(re.escape(part) for part in pattern.split("*")) for pattern in patterns)
    return re.compile("|".join(each) or r"(?!)")
