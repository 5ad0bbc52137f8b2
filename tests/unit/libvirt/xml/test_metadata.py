"""The cables that a domain's XML asks for: read, written, refused with a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkmgr.errors import BadMetadata
from linkmgr.libvirt.xml.desired_cables import (
    DesiredCable,
    DesiredCables,
    InlineNetwork,
    desired_cables_of_xml,
    parse,
    render,
)
from linkmgr.model import LinkState, NotifyMode

DOCS = Path(__file__).parents[4] / "docs/metadata.md"
DOMAIN = """<domain type='kvm'><name>web1</name><metadata>
  <other:app xmlns:other='urn:other'><other:x/></other:app>
  {}
</metadata></domain>"""
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"))


@st.composite
def cables(draw: st.DrawFn) -> DesiredCable:
    kind = draw(st.sampled_from(["none", "network", "port", "inline"]))
    inline = InlineNetwork(draw(NAMES), draw(st.dictionaries(TEXTS, TEXTS, max_size=3)))
    return DesiredCable(
        nic=draw(NAMES),
        network=draw(NAMES.filter(lambda n: n != "fd")) if kind in ("network", "port") else None,
        port=draw(NAMES) if kind == "port" else None,
        inline=inline if kind == "inline" else None,
        link=draw(st.sampled_from(LinkState)),
        notify=draw(st.sampled_from(NotifyMode)),
    )


@given(st.lists(cables(), max_size=4))
def test_what_is_written_is_read_again_bare_and_in_a_domain(made: list[DesiredCable]) -> None:
    wanted = DesiredCables({each.nic: each for each in made})
    assert parse(render(wanted)) == wanted
    assert parse(render(wanted, key="lm")) == wanted
    assert desired_cables_of_xml(DOMAIN.format(render(wanted, key="lm"))) == wanted


def test_the_example_of_the_documentation_says_what_the_documentation_says() -> None:
    example = re.search(r"```xml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert example is not None
    found = desired_cables_of_xml(DOMAIN.format(example[1]))
    assert found == DesiredCables(
        {
            "ua-net0": DesiredCable("ua-net0", "blue", "p1"),
            "ua-net1": DesiredCable(
                "ua-net1",
                inline=InlineNetwork("bridge", {"bridge": "br0"}),
                notify=NotifyMode.ANNOUNCE,
            ),
            "ua-net2": DesiredCable("ua-net2", link=LinkState.DOWN),
        }
    )
    assert [str(each) for each in found.by_nic.values()] == [
        "plugged into blue:p1, link up",
        "plugged into bridge(bridge=br0), link up",
        "unplugged, link down",
    ]


def test_a_domain_that_asks_for_nothing_wants_every_nic_unplugged_with_its_link_up() -> None:
    for xml in (DOMAIN.format(""), "<domain><name>x</name></domain>"):
        assert desired_cables_of_xml(xml) == DesiredCables()
    assert parse(None).get("ua-net0") == DesiredCable("ua-net0")
    assert not parse(None).get("ua-net0").plugged


def test_changing_one_nic_leaves_the_others_and_what_means_nothing_is_not_written() -> None:
    wanted = parse("<cables><cable nic='a' network='blue' link='down'/><cable nic='b'/></cables>")
    wanted = wanted.with_target("b", "red:p7", NotifyMode.FLAP)
    assert wanted.get("b") == DesiredCable("b", "red", "p7", notify=NotifyMode.FLAP)
    wanted = wanted.with_target("a", None)
    assert wanted.get("a") == DesiredCable("a", link=LinkState.DOWN)
    wanted = wanted.with_link("a", LinkState.UP)
    assert list(wanted.by_nic) == ["b"]
    with pytest.raises(BadMetadata, match="not there at the next start"):
        wanted.with_target("a", "fd:tap7")


@pytest.mark.parametrize(
    ("text", "nic", "says"),
    [
        ("<cables", None, "this is not XML"),
        ("<cable nic='a'/>", None, "is not <cables>"),
        ("<!DOCTYPE cables [<!ENTITY e 'x'>]><cables/>", None, "document type"),
        ("<x:cables xmlns:x='urn:other'/>", None, "is not <cables>"),
        ("<cables x='1'/>", None, "attribute 'x' that nobody knows"),
        ("<cables>hello</cables>", None, "there is text in <cables>: 'hello'"),
        ("<cables><cabel nic='a'/></cables>", None, "<cables> has a <'cabel'>"),
        ("<cables><cable network='blue'/></cables>", None, "does not say for which NIC"),
        ("<cables><cable nic='../a'/></cables>", None, "nic: '../a' cannot be the name of a NIC"),
        ("<cables><cable nic='a' netwrok='b'/></cables>", "a", "did you mean network?"),
        ("<cables><cable nic='a' network='b c'/></cables>", "a", "network: 'b c' cannot be"),
        ("<cables><cable nic='a' network='fd' port='x'/></cables>", "a", "network='fd'"),
        ("<cables><cable nic='a' port='p1'/></cables>", "a", "port is the port of no network"),
        ("<cables><cable nic='a' network='b' driver='bridge'/></cables>", "a", "both there"),
        ("<cables><cable nic='a' link='on'/></cables>", "a", "link cannot be 'on'"),
        ("<cables><cable nic='a' link=''/></cables>", "a", "write one of up, down"),
        ("<cables><cable nic='a' notify='loud'/></cables>", "a", "auto, flap, announce, silent"),
        ("<cables><cable nic='a'/><cable nic='a'/></cables>", "a", "it has two <cable>"),
        ("<cables><cable nic='a'>blue</cable></cables>", "a", "text in <cable>: 'blue'"),
        ("<cables><cable nic='a'><option name='x' value='y'/></cable></cables>", "a",
         "options belong to an inline network"),
        ("<cables><cable nic='a' driver='bridge'><opt/></cable></cables>", "a", "has a <'opt'>"),
        ("<cables><cable nic='a' driver='d'><option name='x'/></cable></cables>", "a",
         "an <option> has no value"),
        ("<cables><cable nic='a' driver='d'><option name='x' value='1'/>"
         "<option name='x' value='2'/></cable></cables>", "a", "the option 'x' is there twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_domain_nic_and_what_to_do(
    text: str, nic: str | None, says: str
) -> None:
    with pytest.raises(BadMetadata) as raised:
        parse(text, domain="web1")
    error = raised.value
    assert error.code == "bad-metadata"
    assert error.nic == (f"web1/{nic}" if nic else "web1")
    assert says in str(error)
    assert error.hint
    if text.startswith("<cables>"):
        inside = text.replace("<cables>", "<cables xmlns='urn:linkmgr:cables'>")
        with pytest.raises(BadMetadata) as raised:
            desired_cables_of_xml(DOMAIN.format(inside))
        assert raised.value.nic == error.nic


@pytest.mark.parametrize("tag", ["cabels", "cable", "Cables"])
def test_a_misspelt_element_does_not_ask_for_no_cables(tag: str) -> None:
    with pytest.raises(BadMetadata, match=rf"web1: .*{tag}'> is not <cables>"):
        desired_cables_of_xml(DOMAIN.format(f"<{tag} xmlns='urn:linkmgr:cables'/>"))
    assert desired_cables_of_xml(DOMAIN.format("<cabels xmlns='urn:others'/>")) == DesiredCables()


def test_two_elements_in_one_domain_are_refused() -> None:
    twice = "<cables xmlns='urn:linkmgr:cables'/>" * 2
    with pytest.raises(BadMetadata, match=r"web1: .*there are 2 elements"):
        desired_cables_of_xml(DOMAIN.format(twice))


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(f"<cables>{text}</cables>")
        parse(text)
    except BadMetadata:
        pass
