"""How many places of a kind each user may have, so that nobody can take the last ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import IntEnum

from linkmgr.service.auth.peer import Peer


class Rank(IntEnum):
    """What a user may do at most, which decides how many places all of its kind may have."""

    STRANGER = 0  #: reads only
    MEMBER = 1  #: of the group, or a user with rules
    PRIVILEGED = 2  #: root, and so libvirt's hook, and the service's own user


#: Parts of all places that users of a rank, and of those below, may have together. One person can
#: have as many uids as he likes (subuid(5)), so strangers together leave half to those who work
#: with it, and all others leave a tenth to root.
RANK_SHARES = {Rank.STRANGER: 0.5, Rank.MEMBER: 0.9, Rank.PRIVILEGED: 1.0}
#: Part of all places that one user but root may have: four busy ones still find a place each.
USER_SHARE = 0.25


class Quota:
    """Counts the places that users have, and says who may have one more.

    :param most: all places; may change.
    :param rank: of a user.
    :param one_user: places of one user but root; by default `USER_SHARE` of all.
    """

    def __init__(
        self,
        most: Callable[[], int],
        rank: Callable[[Peer], Rank],
        one_user: Callable[[], int] | None = None,
    ) -> None:
        self._most = most
        self._rank = rank
        self._one_user = one_user or (lambda: max(1, int(most() * USER_SHARE)))
        self._count: Counter[int] = Counter()  # by uid
        self._by_rank: Counter[Rank] = Counter()

    @property
    def total(self) -> int:
        """Places that are taken."""
        return self._count.total()

    def refusal(self, peer: Peer) -> str | None:
        """Say why a user cannot have one more place, as a clause; ``None`` when it can."""
        rank = self._rank(peer)
        if rank is not Rank.PRIVILEGED and self._count[peer.uid] >= self._one_user():
            return f"uid {peer.uid} has {self._count[peer.uid]}, as many as one user may"
        together = sum(self._by_rank[each] for each in Rank if each <= rank)
        if together >= max(1, int(self._most() * RANK_SHARES[rank])):
            return f"there are {together}, as many as may be"
        return None

    def enter(self, peer: Peer) -> Callable[[], None]:
        """Take a place; what is returned gives it back, once."""
        rank = self._rank(peer)
        self._count[peer.uid] += 1
        self._by_rank[rank] += 1
        taken = True

        def leave() -> None:
            nonlocal taken
            if taken:
                taken = False
                self._count -= Counter([peer.uid])
                self._by_rank -= Counter([rank])

        return leave
