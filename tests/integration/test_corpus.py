"""A part of the domains of libvirt's own tests; ``make corpus`` takes all of them."""

from __future__ import annotations

import pytest

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
