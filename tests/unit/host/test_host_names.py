"""Names of devices are valid and do not collide; addresses are of the right sort."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkmgr.errors import BadName
from linkmgr.host import check_ifname, device_name, new_id, private_mac, tap_mac

idents = st.integers(0, 2**32 - 1).map("{:08x}".format)
prefixes = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", max_size=7)


def test_a_device_name_is_the_prefix_and_the_id() -> None:
    assert device_name("lm", "3f9a1c2e") == "lm3f9a1c2e"


@given(prefixes, idents)
def test_every_device_name_fits_and_is_valid(prefix: str, ident: str) -> None:
    name = device_name(prefix, ident)
    assert len(name) <= 15
    assert check_ifname(name) == name


@given(prefixes, idents, idents)
def test_different_ids_never_give_the_same_name(prefix: str, one: str, other: str) -> None:
    assert (device_name(prefix, one) == device_name(prefix, other)) == (one == other)


def test_ids_are_eight_hex_digits_and_differ() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(ident) == 8 and int(ident, 16) >= 0 for ident in ids)


@pytest.mark.parametrize(
    "ident", ["", "3f9a1c2", "3f9a1c2e0", "3F9A1C2E", "3f9a1c2g", "../../..", "\n"]
)
def test_what_is_not_an_id_makes_no_name(ident: str) -> None:
    with pytest.raises(BadName, match="id of an attachment"):
        device_name("lm", ident)


def test_a_long_prefix_is_refused_not_cut() -> None:
    with pytest.raises(BadName):
        device_name("linkmgr-", "3f9a1c2e")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a b", "a\tb", "eth0\n", "a:1", "tap%d", "sixteen-letters!", "é" * 8,
     "a\0b", "\x1b[0m", "x" * 300, None, 7],
)  # fmt: skip
def test_what_cannot_be_a_device_is_refused_with_a_short_printable_error(name: object) -> None:
    with pytest.raises(BadName) as caught:
        check_ifname(name)  # type: ignore[arg-type]  # wrong on purpose
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a", "eth0", "eth0.100", "br-blue", "_", "fifteen-letters", "é"])
def test_what_can_be_a_device_is_accepted(name: str) -> None:
    assert check_ifname(name) == name


@given(st.text())
def test_any_text_is_accepted_or_a_bad_name(text: str) -> None:
    try:
        check_ifname(text)
    except BadName:
        return
    assert "/" not in text
    assert 0 < len(text.encode()) <= 15


def test_a_private_address_is_unicast_and_locally_administered() -> None:
    for _ in range(200):
        first = int(private_mac()[:2], 16)
        assert first & 0x03 == 0x02
    assert private_mac() != private_mac()


def test_a_tap_never_has_the_lowest_address() -> None:
    assert all(tap_mac().startswith("fe:") and len(tap_mac()) == 17 for _ in range(100))
    assert tap_mac() != tap_mac()
