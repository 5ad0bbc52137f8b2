"""Domains to be prepared."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parent / "data/domains"
FILES = sorted(DATA.glob("*.xml"))
PLAIN = (DATA / "plain.xml").read_bytes()
BY_HAND = (DATA / "by_hand.xml").read_bytes()

QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def domain(*interfaces: str, more: str = "") -> bytes:
    """A domain of NICs and little else."""
    return f"""<domain type='qemu'>
  <name>web1</name>
  <devices>
    {"".join(interfaces)}
  </devices>
  {more}
</domain>""".encode()
