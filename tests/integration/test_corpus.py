"""A part of the domains of libvirt's own tests; ``make corpus`` takes all of them."""

from __future__ import annotations

import pytest

from linkmgr.libvirt.prepare import prepare, undo
from tests.corpus.rewriting import measured
from tests.corpus.run import run
from tests.corpus.source import SUITES, Suite

EVERY = 8  #: of the corpus, which takes two minutes: under 20 s


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
    def cost(nics: int) -> float:
        """Milliseconds of CPU for each NIC."""
        devices = "<interface type='user'><model type='virtio'/></interface>\n" * nics
        xml = f"<domain type='qemu'><name>a</name><devices>\n{devices}</devices></domain>".encode()
        made, preparing = measured(lambda: prepare(xml).xml, enough=0)
        back, undoing = measured(lambda: undo(made).xml, enough=0)
        assert back == xml
        return (preparing + undoing) / nics

    first, *others = [cost(nics) for nics in (50, 100, 200)]
    assert max(others) < 2 * first
