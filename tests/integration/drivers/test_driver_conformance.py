"""What every network driver promises, tried on each of them with no hypervisor present.

A driver takes part by a `Bench` that says how its network is built on a bare host.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from linkmgr.drivers import NetworkDriver, find_driver, known_drivers
from linkmgr.errors import BadOption, HostError, MtuTooLarge, NoCommonEndpoint
from linkmgr.host import Host
from linkmgr.model import EndpointKind, Network, NicRef, Offer, Port
from linkmgr.testing.process import execute

OFFER = Offer(NicRef("web1", "net0"), tuple(EndpointKind), mac="52:54:00:00:01:00")


@dataclass(frozen=True)
class Bench:
    """How to build a network for one driver.

    :param build: shell commands that make the device; `destroy` takes it away again.
    :param device: its name.
    :param prefix: of the names of its ports.
    """

    network: Network
    device: str
    build: str
    destroy: str
    prefix: str = ""


BENCHES = {
    "bridge": Bench(
        Network("blue", "bridge", {"bridge": "br-t"}),
        "br-t",
        "ip link add br-t type bridge && ip link set br-t up",
        "ip link del br-t",
    ),
    "direct": Bench(
        Network("green", "direct", {"parent": "par-t"}),
        "par-t",
        "ip link add par-t type veth peer name par-p && ip link set par-p up",
        "ip link del par-t",
    ),
}


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with Host() as host:
        yield host


# The endpoints of "fd" are not made but handed over: test_fd_driver.py prepares that.
@pytest.fixture(params=sorted(set(known_drivers()) - {"fd"}))
def bench(request: pytest.FixtureRequest) -> Bench:
    assert request.param in BENCHES, f"driver {request.param} needs a Bench here"
    return BENCHES[request.param]


@pytest.fixture
def driver(bench: Bench, host: Host) -> NetworkDriver:
    return find_driver(bench.network.driver)(host)


@pytest.fixture
async def built(bench: Bench) -> AsyncIterator[Bench]:
    await execute(["sh", "-c", bench.build])
    yield bench
    await execute(["sh", "-c", bench.destroy], check=False)


def port_of(bench: Bench, name: str = "p1") -> Port:
    return Port(bench.network, bench.prefix + name)


async def test_it_supplies_a_kind_that_was_offered(built: Bench, driver: NetworkDriver) -> None:
    attachment = await driver.init_attachment(OFFER, port_of(built))
    endpoint = await attachment.realise()
    assert endpoint.kind in OFFER.kinds
    assert endpoint.kind in driver.kinds
    await attachment.activate()
    await driver.terminate_attachment(attachment)


async def test_it_takes_the_first_kind_of_the_offer_that_it_knows(
    built: Bench, driver: NetworkDriver
) -> None:
    for kinds in (OFFER.kinds, OFFER.kinds[::-1]):
        attachment = await driver.init_attachment(replace(OFFER, kinds=kinds), port_of(built))
        assert attachment.kind == next(kind for kind in kinds if kind in driver.kinds)
        await driver.terminate_attachment(attachment)


async def test_without_a_common_kind_it_says_what_was_wanted_and_what_there_is(
    bench: Bench, driver: NetworkDriver
) -> None:
    others = tuple(kind for kind in EndpointKind if kind not in driver.kinds)
    for kinds in ((), others):
        with pytest.raises(NoCommonEndpoint) as caught:
            await driver.init_attachment(replace(OFFER, kinds=kinds), port_of(bench))
        for word in (*driver.kinds, *(kinds or ("nothing",)), bench.network.name):
            assert word in str(caught.value)


async def test_a_claim_touches_nothing_on_the_host(
    bench: Bench, driver: NetworkDriver, host: Host
) -> None:
    before = await host.list_devices()
    attachment = await driver.init_attachment(OFFER, port_of(bench))
    assert await host.list_devices() == before
    await driver.terminate_attachment(attachment)


async def test_a_missing_device_is_named_and_the_claim_can_be_ended(
    bench: Bench, driver: NetworkDriver, host: Host
) -> None:
    before = await host.list_devices()
    attachment = await driver.init_attachment(OFFER, port_of(bench))
    with pytest.raises(HostError, match=bench.device) as caught:
        await attachment.realise()
    assert caught.value.hint
    await driver.terminate_attachment(attachment)
    assert await host.list_devices() == before


async def test_ending_a_claim_twice_or_after_the_device_is_gone_succeeds(
    built: Bench, driver: NetworkDriver
) -> None:
    attachment = await driver.init_attachment(OFFER, port_of(built))
    await attachment.realise()
    await execute(["sh", "-c", built.destroy])
    await driver.terminate_attachment(attachment)
    await driver.terminate_attachment(attachment)


async def test_what_it_brings_up_is_up_and_what_it_found_stays(
    built: Bench, driver: NetworkDriver, host: Host
) -> None:
    await host.set_down(built.device)
    one = await driver.init_attachment(OFFER, port_of(built, "p1"))
    two = await driver.init_attachment(OFFER, port_of(built, "p2"))
    await one.realise()
    await two.realise()
    assert (await host.device(built.device)).up
    await driver.terminate_attachment(one)
    await driver.terminate_attachment(two)
    await driver.forget_network(built.network)
    assert await host.find_device(built.device)


async def test_a_network_with_larger_frames_than_the_nic_takes_is_refused(
    built: Bench, driver: NetworkDriver, host: Host
) -> None:
    await host.set_mtu(built.device, 9000)
    attachment = await driver.init_attachment(OFFER, port_of(built))
    with pytest.raises(MtuTooLarge, match=r"9000 bytes.*only 1500"):
        await attachment.realise()
    await driver.terminate_attachment(attachment)
    large = await driver.init_attachment(replace(OFFER, mtu=9000), port_of(built))
    assert (await large.realise()).mtu == 9000
    await driver.terminate_attachment(large)


async def test_a_network_that_promises_more_than_its_device_carries_is_refused(
    built: Bench, driver: NetworkDriver, host: Host
) -> None:
    network = replace(built.network, options={**built.network.options, "mtu": 9000})
    attachment = await driver.init_attachment(replace(OFFER, mtu=9000), Port(network, "p1"))
    with pytest.raises(HostError, match=f"promises 9000 bytes, but {built.device}"):
        await attachment.realise()
    await driver.terminate_attachment(attachment)


def test_it_names_an_unknown_option(bench: Bench, driver: NetworkDriver) -> None:
    network = replace(bench.network, options={**bench.network.options, "colour": "blue"})
    with pytest.raises(BadOption, match="no option 'colour'"):
        driver.check_network(network)
    with pytest.raises(BadOption, match="no option 'colour'"):
        driver.check_port(Port(bench.network, "p1", {"colour": "blue"}))


async def test_a_bridge_that_is_asked_for_is_made_and_removed_with_its_last_attachment(
    host: Host,
) -> None:
    driver = find_driver("bridge")(host)
    network = Network("blue", "bridge", {"bridge": "br-made", "create": True, "mtu": 1400})
    attachments = []
    for name in ("p1", "p2"):
        attachment = await driver.init_attachment(OFFER, Port(network, name))
        await attachment.realise()
        attachments.append(attachment)
    made = await host.device("br-made")
    assert (made.kind, made.up, made.mtu) == ("bridge", True, 1400)
    await driver.terminate_attachment(attachments[0])
    assert await host.find_device("br-made")
    await driver.terminate_attachment(attachments[1])
    assert await host.find_device("br-made") is None


async def test_a_bridge_that_we_made_stays_while_somebody_elses_port_is_on_it(host: Host) -> None:
    driver = find_driver("bridge")(host)
    network = Network("blue", "bridge", {"bridge": "br-made", "create": True})
    attachment = await driver.init_attachment(OFFER, Port(network, "p1"))
    await attachment.realise()
    await execute(
        ["sh", "-c", "ip link add up0 type veth peer name up1; ip link set up0 master br-made"]
    )
    await driver.terminate_attachment(attachment)
    assert await host.find_device("br-made")
    await execute(["ip", "link", "del", "up0"])
    await driver.forget_network(network)
    assert await host.find_device("br-made") is None


VETH = "ip link add x0 type veth peer name x1; "


@pytest.mark.parametrize(
    ("driver_name", "options", "commands", "word"),
    [
        ("bridge", {}, VETH, "is a veth device"),
        ("direct", {}, VETH + "ip link add x2 type bridge; ip link set x0 master x2", "x2"),
        ("direct", {"mode": "passthru"}, VETH + "ip link add link x0 name x3 type macvtap", "x0"),
        ("direct", {}, VETH + "ip link add link x0 name x3 type macvtap mode passthru", "passthru"),
    ],
)
async def test_a_device_that_is_taken_is_refused_before_anything_is_made(
    host: Host, driver_name: str, options: dict[str, object], commands: str, word: str
) -> None:
    await execute(["sh", "-c", commands])
    try:
        before = await host.list_devices()
        driver = find_driver(driver_name)(host)
        where = {"bridge": "bridge", "direct": "parent"}[driver_name]
        network = Network("n", driver_name, {where: "x0", **options})
        attachment = await driver.init_attachment(OFFER, Port(network, "p"))
        with pytest.raises(HostError, match=word) as caught:
            await attachment.realise()
        assert caught.value.hint
        await driver.terminate_attachment(attachment)
        assert [device.name for device in await host.list_devices()] == [
            device.name for device in before
        ]
    finally:
        await execute(["sh", "-c", "ip link del x0; ip link del x2"], check=False)
