"""Names, NIC references, ports and tags."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkmgr.errors import BadName, LinkmgrError, UnknownNic
from linkmgr.model import Network, NicRef, OwnerTag, Port, check_name


@pytest.mark.parametrize("name", ["blue", "a", "0", "web-1.example_2", "x" * 63])
def test_a_plain_name_is_taken(name: str) -> None:
    assert check_name("network", name) == name


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "a\nb", "blue\n", "-a", ".", "..", "../../x", "x" * 64, "x" * 300, "naïve", "a b"],
)
def test_a_name_that_could_mislead_is_refused_with_its_kind(name: str) -> None:
    with pytest.raises(BadName, match="cannot be the name of a network") as caught:
        check_name("network", name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@given(st.text())
def test_whatever_is_not_vm_slash_alias_names_no_nic(text: str) -> None:
    with contextlib.suppress(BadName):
        assert str(NicRef.parse(text)) == text


@pytest.mark.parametrize("text", ["", "web1", "web1/", "/net0", "web1/net0/x", "web 1/net0"])
def test_a_malformed_nic_name_is_refused(text: str) -> None:
    with pytest.raises(BadName):
        NicRef.parse(text)


def test_options_of_a_network_cannot_be_changed_behind_its_back() -> None:
    options = {"bridge": "br0"}
    network = Network("blue", "bridge", options)
    options["bridge"] = "br1"
    assert network.options["bridge"] == "br0"
    with pytest.raises(TypeError):
        network.options["bridge"] = "br2"  # type: ignore[index]  # wrong on purpose


def test_an_implied_port_is_shown_as_its_network() -> None:
    blue = Network("blue", "bridge")
    assert str(Port(blue, "p1")) == "blue:p1"
    assert str(Port(blue, "web1/net0", implied=True)) == "blue"


def test_a_tag_reads_back_and_nothing_else_is_one() -> None:
    for tag in (
        OwnerTag("web1/net0", "3f9a1c2e"),
        OwnerTag("network/net0", "3f9a1c2e"),
        OwnerTag.of_network("blue", "3f9a1c2e"),
    ):
        assert OwnerTag.parse(str(tag)) == tag
        assert OwnerTag.parse(str(tag), of_cable=False) == tag
    for text in (
        None,
        "",
        "uplink",
        "linkmgr",
        "linkmgr:",
        "linkmgr:web1/net0",
        "linkmgr:web1/net0:uplink",
        "linkmgr:nic:web1:3f9a1c2e",
        "linkmgr:port:blue:3f9a1c2e",
        "linkmgr:network:blue/net0:3f9a1c2e",
        "linkmgr:nic:network:blue:3f9a1c2e",
    ):
        assert OwnerTag.parse(text) is None


def test_a_tag_without_its_kind_is_told_by_the_kind_of_the_device() -> None:
    """So the aliases are that were written before the kind of owner was part of them."""
    assert OwnerTag.parse("linkmgr:web1/net0:3f9a1c2e") == OwnerTag("web1/net0", "3f9a1c2e")
    old = "linkmgr:network/blue:3f9a1c2e"
    assert OwnerTag.parse(old, of_cable=True) == OwnerTag("network/blue", "3f9a1c2e")
    assert OwnerTag.parse(old, of_cable=False) == OwnerTag.of_network("blue", "3f9a1c2e")


def test_a_nic_and_a_network_never_own_the_same() -> None:
    nic, network = OwnerTag("network/blue", "3f9a1c2e"), OwnerTag.of_network("blue", "3f9a1c2e")
    assert (nic.vm, nic.network) == ("network", None)
    assert (network.vm, network.network) == (None, "blue")
    assert nic != network
    assert nic.owner != network.owner


def test_an_error_says_what_happened_to_which_nic_its_state_and_what_to_do() -> None:
    error = UnknownNic("it is not there", hint="look again").about("web1/net0", "unplugged")
    assert str(error) == ("web1/net0: it is not there. web1/net0 is unplugged. To do: look again")
    assert error.about("other", "else").nic == "web1/net0"


def test_every_error_has_a_code_of_its_own() -> None:
    def tree(kind: type[LinkmgrError]) -> list[type[LinkmgrError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in tree(child))]

    codes = [kind.code for kind in tree(LinkmgrError)]
    assert len(codes) == len(set(codes))
