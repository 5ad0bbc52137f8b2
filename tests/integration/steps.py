"""The steps of each verb, in their order: what every test of single steps is parametrized with.

They are taken from the enum, so a new step is in all three verbs until it is said here that it is
not, and a test that wants it reached fails. `test_restart_killed` and `test_failures_steps` compare
these lists with the steps that undisturbed verbs take.
"""

from __future__ import annotations

from linkmgr.swap.steps import Step

RESTART = [Step.RECOVER, Step.SWEEP, Step.REMEMBER]
#: Of the cable that a plug makes, and of the one that an unplug takes down.
NEW_SIDE = [Step.OFFER, Step.INIT, Step.REALISE, Step.STAGE, Step.ACTIVATE, Step.NOTIFY, Step.NAME]
OLD_SIDE = [Step.RELEASE, Step.TERMINATE]
REPLUG: list[Step] = [step for step in Step if step not in (Step.LINK_DOWN, *RESTART)]
PLUG: list[Step] = [step for step in REPLUG if step not in OLD_SIDE]
UNPLUG: list[Step] = [step for step in Step if step not in (*NEW_SIDE, *RESTART)]
#: Before these the NIC is still on its old cable; from the next one on it is on the new one.
BEFORE_THE_SWITCH = list(Step)[: list(Step).index(Step.SWITCH) + 1]


def done_before(step: str) -> bool:
    """Whether the NIC is on its new cable, or on none, when its linkmgr died before that step."""
    return step not in BEFORE_THE_SWITCH


def reaches_at(step: str, start: str | None, target: str | None) -> str | None:
    """The network that the guest reaches while its linkmgr is dead since before that step.

    None while its carrier is down: an unplug takes that away first, a plug brings it back last.
    """
    if done_before(step):
        place = None if start is None and step in (Step.ACTIVATE, Step.NOTIFY) else target
    else:
        place = None if target is None and step == Step.SWITCH else start
    return network_of(place)


def flaps_after(step: str, start: str | None, target: str | None) -> bool:
    """Whether a restart flaps the carrier: done is done, but not written down, so it is told again.

    Only with ``notify="auto"``, to a guest that has come to another network.
    """
    untold = step in (Step.ACTIVATE, Step.NOTIFY, Step.RECORD)
    return untold and target is not None and network_of(start) != network_of(target)


def network_of(place: str | None) -> str | None:
    """The network of a ``NETWORK[:PORT]``."""
    return place.partition(":")[0] if place else None
