"""Domains of libvirt's own tests, and what an author who means harm can do to them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from linkmgr.text.untrusted import SENTENCE_LIMIT
from tests.corpus.hostile import HURTS, judge
from tests.corpus.source import SUITES, Suite

_COMMAND = "from linkmgr.cli import main; main()"
EXAMPLES = int(os.environ.get("LINKMGR_EXAMPLES", "60"))
MEMORY = 512 << 20  #: bytes of address space for ``linkmgr prepare``, of which Python takes half
DOCUMENT_TIMEOUT_S = 20.0  #: for one on a busy machine; its CPU time is bounded by `judge`

pytestmark = pytest.mark.skipif(
    not all(Suite(each).is_here() for each in SUITES),
    reason="the corpus is not here: scripts/corpus-source.sh",
)


@cache
def documents() -> list[bytes]:
    """Domains of QEMU with NICs, small ones: what is done to them is large."""
    files = [
        path for name in SUITES for path in sorted(Suite(name).directory.rglob("qemu*/net*.xml"))
    ]
    found = [path.read_bytes() for path in files]
    return [xml for xml in found if b"<interface" in xml and b"<domain type=" in xml]


@pytest.mark.parametrize("name", HURTS)
def test_each_thing_that_an_author_can_do_is_bounded_and_refused_or_handled(name: str) -> None:
    xml = documents()[0]
    judge(HURTS[name](xml))
    judge(HURTS[name](HURTS["prepared"](xml)))


@given(
    which=st.integers(0, 1 << 20),
    names=st.lists(st.sampled_from(sorted(HURTS)), min_size=2, max_size=4),
)
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_several_of_them_together_are_bounded_and_refused_or_handled(
    which: int, names: list[str]
) -> None:
    xml = documents()[which % len(documents())]
    for name in names:
        xml = HURTS[name](xml)
    judge(xml)


@pytest.mark.parametrize(
    "name",
    [
        "330,000 elements",
        "8,000 elements",
        "500 NICs",
        "laughs",
        "a long value",
        "UTF-16",
        "a long name",
    ],
)
def test_the_command_takes_little_memory_and_says_one_line(name: str, tmp_path: Path) -> None:
    file = tmp_path / "web1.xml"
    file.write_bytes(HURTS[name](documents()[0]))
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, "prepare", str(file), "--xml"],
        capture_output=True, check=False, timeout=DOCUMENT_TIMEOUT_S,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )  # fmt: skip
    said = done.stderr.decode()
    assert "Traceback" not in said
    assert len(said) < 5 * SENTENCE_LIMIT
    if done.returncode:
        assert done.stdout == b""
        assert "To do: " in said
    else:
        judge(done.stdout)
