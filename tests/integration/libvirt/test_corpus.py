"""A part of the domains of libvirt's own tests; ``make corpus`` takes all of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from linkmgr.libvirt.prepare.rewrite import prepare, undo
from tests.corpus.run import run
from tests.corpus.source import SUITES, Suite

EVERY = 8  #: of the corpus, which takes two minutes: under 20 s
FEW, MANY = 100, 400  #: NICs; 800 are more elements than a domain may have
#: The part of the CPU time for many NICs that is found if it grows with their square.
QUADRATIC = 0.4
#: Of the CPU time for a NIC. With such a part it is 1.43; without one 1.07 was measured, and once
#: 1.17 beside other work.
GROWTH = 1.25
TRIES = range(4, 9)  #: of which the least counts; the first of these will do if it is less


@pytest.mark.parametrize("name", SUITES)
def test_domains_of_libvirts_tests_are_prepared_and_undone_or_refused(name: str) -> None:
    suite = Suite(name)
    if not suite.is_here():
        pytest.skip("the corpus is not here: scripts/corpus-source.sh")
    files = suite.domains()
    assert len(files) > 1000
    found = run(suite, files[::EVERY])
    assert found.wrong == []
    assert found.prepared > found.domains // 3
    assert found.taken > found.domains // 3


def test_the_cpu_time_for_a_nic_does_not_grow_with_the_number_of_nics() -> None:
    assert _growth(_prepare_and_undo) < GROWTH


def test_a_quadratic_part_is_found() -> None:
    def with_a_part(nics: int) -> None:
        begun = time.thread_time()
        _prepare_and_undo(nics)
        proper = time.thread_time() - begun
        begun = time.thread_time()
        while time.thread_time() - begun < proper * QUADRATIC / (1 - QUADRATIC) * nics / MANY:
            pass

    assert _growth(with_a_part) > GROWTH


def _prepare_and_undo(nics: int) -> None:
    devices = "<interface type='user'><model type='virtio'/></interface>\n" * nics
    xml = f"<domain type='qemu'><name>a</name><devices>\n{devices}</devices></domain>".encode()
    assert undo(prepare(xml).xml).xml == xml


def _growth(work: Callable[[int], None]) -> float:
    """By what the CPU time for a NIC grows from few to many: of the least of some times each."""
    least = dict.fromkeys((FEW, MANY), float("inf"))
    for done in range(1, TRIES.stop):
        for nics in least:  # in turn: what else runs here slows both down
            begun = time.thread_time()
            work(nics)
            least[nics] = min(least[nics], (time.thread_time() - begun) / nics)
        if done in TRIES and least[MANY] < GROWTH * least[FEW]:
            break
    return least[MANY] / least[FEW]
