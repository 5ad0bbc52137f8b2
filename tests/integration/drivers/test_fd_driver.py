"""The driver ``fd`` keeps the promises of every driver, with no hypervisor present.

The suite's own tests run here, on a tap that was left. Three say nothing about it: it has no device
to miss before the claim, brings nothing up, and its network promises no MTU.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from linkmgr.drivers import NetworkDriver, find_driver
from linkmgr.drivers.fd import FD_NETWORK, fd_port
from linkmgr.errors import BadFd, UnknownPort
from linkmgr.host import Host
from linkmgr.model import FdEndpoint
from linkmgr.testing.process import execute
from tests.integration.drivers.test_driver_conformance import (
    OFFER,
    Bench,
    host,
    test_a_claim_touches_nothing_on_the_host,
    test_a_network_with_larger_frames_than_the_nic_takes_is_refused,
    test_ending_a_claim_twice_or_after_the_device_is_gone_succeeds,
    test_it_names_an_unknown_option,
    test_it_supplies_a_kind_that_was_offered,
    test_it_takes_the_first_kind_of_the_offer_that_it_knows,
    test_without_a_common_kind_it_says_what_was_wanted_and_what_there_is,
)
from tests.integration.drivers.test_fd import open_tap

__all__ = [
    "host",
    "test_a_claim_touches_nothing_on_the_host",
    "test_a_network_with_larger_frames_than_the_nic_takes_is_refused",
    "test_ending_a_claim_twice_or_after_the_device_is_gone_succeeds",
    "test_it_names_an_unknown_option",
    "test_it_supplies_a_kind_that_was_offered",
    "test_it_takes_the_first_kind_of_the_offer_that_it_knows",
    "test_without_a_common_kind_it_says_what_was_wanted_and_what_there_is",
]

UID = os.getuid()
PORT = fd_port(UID, "p1")


@pytest.fixture
async def built(host: Host) -> Bench:
    """A tap that waits under the name p1."""
    await host.fds.deposit(UID, "p1", open_tap("tap-t"))
    return Bench(FD_NETWORK, "tap-t", "true", "ip link del tap-t", f"{UID}.")


@pytest.fixture
def bench(built: Bench) -> Bench:
    return built


@pytest.fixture
def driver(host: Host) -> NetworkDriver:
    return find_driver("fd")(host)


async def test_a_device_that_was_deleted_is_told_and_the_claim_can_be_ended(
    built: Bench, driver: NetworkDriver
) -> None:
    attachment = await driver.init_attachment(OFFER, PORT)
    await execute(["sh", "-c", built.destroy])
    with pytest.raises(BadFd, match="device was deleted") as caught:
        await attachment.realise()
    assert caught.value.hint
    await driver.terminate_attachment(attachment)
    with pytest.raises(UnknownPort):
        await driver.init_attachment(OFFER, PORT)


async def test_what_a_nic_was_on_is_not_given_back_what_it_was_not_on_is(
    built: Bench, driver: NetworkDriver
) -> None:
    for _ in range(2):
        attachment = await driver.init_attachment(OFFER, PORT)
        await attachment.realise()
        await driver.terminate_attachment(attachment)
    attachment = await driver.init_attachment(OFFER, PORT)
    await attachment.realise()
    await attachment.activate()
    await driver.terminate_attachment(attachment)
    with pytest.raises(UnknownPort):
        await driver.init_attachment(OFFER, PORT)


async def test_a_claim_that_outlived_a_restart_keeps_the_name_and_knows_no_more(
    driver: NetworkDriver,
) -> None:
    other = fd_port(UID, "p2")
    attachment = await driver.init_attachment(OFFER, other, ident="aaaa0001")
    assert attachment.id == "aaaa0001"
    assert await attachment.realise() == FdEndpoint(other.name)
    await attachment.activate()
    await driver.terminate_attachment(attachment)
    await driver.terminate_attachment(attachment)


async def test_a_tap_in_our_own_namespace_tells_its_mtu(
    built: Bench,
    driver: NetworkDriver,
    host: Host,
) -> None:
    await host.set_mtu(built.device, 1400)
    attachment = await driver.init_attachment(replace(OFFER, mtu=1400), PORT)
    endpoint = await attachment.realise()
    assert endpoint == FdEndpoint(PORT.name, "tap-t", vnet_hdr=False, mtu=1400)
    await driver.terminate_attachment(attachment)
