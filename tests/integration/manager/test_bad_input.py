"""Bad input gets a typed error that says what to do, and changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from linkmgr import LinkManager, NicState, hub_args
from linkmgr.errors import (
    AlreadyExists,
    BadName,
    BadOption,
    CannotAttach,
    Conflict,
    HubCrowded,
    LinkmgrError,
    MonitorUnreachable,
    MtuTooLarge,
    NetworkInUse,
    NoSink,
    NotOnHub,
    PortInUse,
    UnknownNetwork,
    UnknownNic,
    UnknownPort,
    UnknownVm,
)
from tests.integration.failures_lab import another_guest, is_told, traces
from tests.integration.lab import Lab, mac_of, make_lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = "x" * 300
MAC = mac_of(7, 0)
BAD_NAMES = ["", "a/b", "a\nb", LONG, "-a", ".", "ü", "a b", "a:b"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    """web1/net0 is plugged into blue:one, web1/net1 is free. The guest is never booted."""
    async with make_lab(tmp_path_factory.mktemp("lab"), timeout=1.0) as made:
        await made.network("blue")
        await made.network("green")
        await made.guest(nics=2, boot=False)
        await made.links.create_port("blue", "one")
        await made.links.plug("web1/net0", "blue:one", notify="silent")
        yield made


@asynccontextmanager
async def refused(
    lab: Lab, kind: type[LinkmgrError], *words: str
) -> AsyncIterator[list[LinkmgrError]]:
    """The block fails with exactly this error, with these words and a hint; nothing changes."""
    before = await traces(lab)
    networks = await lab.links.networks()
    ports = [await lab.links.ports(network.name) for network in networks]
    caught: list[LinkmgrError] = []
    with pytest.raises(LinkmgrError) as info:
        yield caught
    caught.append(info.value)
    assert type(info.value) is kind
    for word in (*words, ". To do: "):
        assert word in str(info.value)
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 600
    assert await traces(lab) == before
    assert await lab.links.networks() == networks
    assert [await lab.links.ports(network.name) for network in networks] == ports


Call = Callable[[LinkManager], Awaitable[object]]


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda m: m.plug("web9/net0", "blue"), UnknownVm, "the VMs are: web1"),
        (lambda m: m.unplug("web9/net0"), UnknownVm, "there is no VM web9"),
        (lambda m: m.set_link("web9/net0", "up"), UnknownVm, "web9"),
        (lambda m: m.nic("web9/net0"), UnknownVm, "web9"),
        (lambda m: m.plug("web1/net9", "blue"), UnknownNic, "its NICs: net0, net1"),
        (lambda m: m.unplug("web1/net9"), UnknownNic, "VM web1 has no NIC net9"),
        (lambda m: m.set_link("web1/net9", "up"), UnknownNic, "net9"),
        (lambda m: m.nic("web1/net9"), UnknownNic, "net9"),
        (lambda m: m.ports("pink"), UnknownNetwork, "the networks are: blue, green"),
        (lambda m: m.create_port("pink", "one"), UnknownNetwork, "no network pink"),
    ],
)
async def test_what_does_not_exist(
    lab: Lab, call: Call, kind: type[LinkmgrError], words: str
) -> None:
    async with refused(lab, kind, words):
        await call(lab.links)


@pytest.mark.parametrize("nic", ["web1/net0", "web1/net1"])
@pytest.mark.parametrize(
    ("target", "kind", "words"),
    [
        ("pink", UnknownNetwork, "the networks are: blue, green"),
        ("pink:one", UnknownNetwork, "there is no network pink"),
        ("blue:nine", UnknownPort, "its ports are: one"),
        ("green:one", UnknownPort, "its ports are: none"),
        ("blue:", BadName, "cannot be the name of a port"),
        (":one", BadName, "cannot be the name of a network"),
        (LONG, BadName, "..."),
        ("bl/ue", BadName, "cannot be the name of a network"),
        (None, BadName, "write NETWORK[:PORT]"),
    ],
)
async def test_a_place_that_is_none(
    lab: Lab, nic: str, target: str, kind: type[LinkmgrError], words: str
) -> None:
    async with refused(lab, kind, words) as caught:
        await lab.links.plug(nic, target)
    is_told(caught[0], nic=nic, state="(plugged into blue:one, link up|unplugged)")


@pytest.mark.parametrize(
    "nic", ["", "-web1", "/", "web1/", "/net0", "web1/net0/x", "web1/a b", f"{LONG}/net0", None, 7]
)
async def test_a_nic_name_that_cannot_be_one(lab: Lab, nic: str) -> None:
    verbs: list[Call] = [
        lambda m: m.plug(nic, "blue"),
        lambda m: m.unplug(nic),
        lambda m: m.set_link(nic, "up"),
        lambda m: m.nic(nic),
    ]
    for verb in verbs:
        async with refused(lab, BadName):
            await verb(lab.links)


@pytest.mark.parametrize("name", [*BAD_NAMES, None, 7])
async def test_a_name_that_cannot_be_one(lab: Lab, name: str) -> None:
    verbs: list[Call] = [
        lambda m: m.create_network(name, "bridge", bridge="br-blue"),
        lambda m: m.delete_network(name),
        lambda m: m.create_port("blue", name),
        lambda m: m.delete_port("blue", name),
        lambda m: m.create_port(name, "one"),
        lambda m: m.add_vm(name, lab.guests["web1"].qmp_path),
        lambda m: m.remove_vm(name),
    ]
    for verb in verbs:
        async with refused(lab, BadName, "use 1 to 63 letters"):
            await verb(lab.links)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.plug("web1/net1", "blue", notify="loud"), "auto, flap, announce or silent"),
        (lambda m: m.plug("web1/net1", "blue", notify=None), "auto, flap, announce or silent"),
        (lambda m: m.set_link("web1/net0", "sideways"), "up or down"),
        (lambda m: m.set_link("web1/net0", True), "up or down"),
        (lambda m: m.create_network("pink", "carrier-pigeon"), "bridge, direct"),
        (lambda m: m.create_network("pink", "bridge"), "'bridge'"),
        (lambda m: m.create_network("pink", "bridge", bridge=7), "give text"),
        (lambda m: m.create_network("pink", "bridge", bridge="br", mtu=7), "from 68 to"),
        (lambda m: m.create_network("pink", "bridge", bridge="br", colour=1), "no option 'colour'"),
        (lambda m: m.create_network("pink", "direct", parent="x", mode="?"), "passthru"),
        (lambda m: m.create_port("blue", "two", colour=1), "no option 'colour'"),
        (lambda m: m.create_port("blue", "two", isolated="yes"), "true or false"),
    ],
)
async def test_an_option_that_is_none(lab: Lab, call: Call, words: str) -> None:
    async with refused(lab, BadOption, words):
        await call(lab.links)


@pytest.mark.parametrize("device", ["", "a/b", "x" * 128, "a b", "..", "lm%d"])
async def test_a_device_name_that_cannot_be_one(lab: Lab, device: str) -> None:
    async with refused(lab, BadName, "cannot be the name of a network device"):
        await lab.links.create_network("pink", "bridge", bridge=device)
    async with refused(lab, BadName, "cannot be the name of a network device"):
        await lab.links.create_network("pink", "direct", parent=device)


async def test_another_description_of_what_exists(lab: Lab) -> None:
    async with refused(lab, AlreadyExists, "network blue exists with other properties"):
        await lab.links.create_network("blue", "bridge", bridge="br-other")
    async with refused(lab, AlreadyExists, "port blue:one exists with other options"):
        await lab.links.create_port("blue", "one", isolated=True)


async def test_a_port_that_another_nic_has(lab: Lab) -> None:
    async with refused(lab, PortInUse, "port blue:one is in use by web1/net0") as caught:
        await lab.links.plug("web1/net1", "blue:one")
    is_told(caught[0], nic="web1/net1", state="unplugged")


async def test_a_network_or_port_in_use_is_not_deleted(lab: Lab) -> None:
    async with refused(lab, NetworkInUse, "network blue is in use by web1/net0"):
        await lab.links.delete_network("blue")
    async with refused(lab, PortInUse, "port blue:one is in use by web1/net0"):
        await lab.links.delete_port("blue", "one")


async def test_a_network_with_ports_is_not_deleted(lab: Lab) -> None:
    await lab.links.create_network("pink", "bridge", bridge="br-blue")
    await lab.links.create_port("pink", "one")
    async with refused(lab, NetworkInUse, "network pink has ports: pink:one"):
        await lab.links.delete_network("pink")
    assert await lab.links.delete_port("pink", "one")
    assert await lab.links.delete_network("pink")


async def test_deleting_what_does_not_exist_succeeds(lab: Lab) -> None:
    assert not await lab.links.delete_network("pink")
    assert not await lab.links.delete_port("blue", "nine")
    assert not await lab.links.delete_port("pink", "nine")
    assert not await lab.links.remove_vm("web9")


# --- NICs that cannot be plugged ------------------------------------------------------------------
def direct(model: str = "virtio-net-pci") -> list[str]:
    return ["-netdev", "user,id=wall", "-device", f"{model},id=net0,netdev=wall,mac={MAC}"]


HUB = ["-netdev", "hubport,id=h0,hubid=5"]
DEVICE = ["-device", f"virtio-net-pci,id=net0,netdev=h0,mac={MAC}"]
SINK = ["-netdev", "hubport,id=sink,hubid=5"]


def cable(number: int) -> list[str]:
    backend, port = f"user,id=u{number}", f"hubport,id=p{number},hubid=5,netdev=u{number}"
    return ["-netdev", backend, "-netdev", port]


SECOND = ["-netdev", "hubport,id=h1,hubid=5", "-device", "virtio-net-pci,id=net1,netdev=h1"]


@pytest.mark.parametrize(
    ("args", "kind", "words"),
    [
        (direct(), NotOnHub, "is wired to wall"),
        (direct("vmxnet3"), NotOnHub, "is wired to wall"),
        (["-device", f"virtio-net-pci,id=net0,mac={MAC}"], NotOnHub, "has no backend"),
        ([*HUB, *DEVICE], NoSink, "hub 5 has no sink port"),
        ([*HUB, *DEVICE, *SINK, *SECOND], HubCrowded, "several NICs"),
    ],
    ids=["direct", "direct-vmxnet3", "no-backend", "no-sink", "two-nics"],
)
@pytest.mark.parametrize("verb", ["plug", "unplug", "set_link"])
async def test_a_nic_that_is_wired_so_that_it_cannot_be_plugged(
    lab: Lab, args: list[str], kind: type[LinkmgrError], words: str, verb: str
) -> None:
    async with another_guest(lab, "odd", args):
        async with refused(lab, kind, words) as caught:
            match verb:
                case "plug":
                    await lab.links.plug("odd/net0", "blue")
                case "unplug":
                    await lab.links.unplug("odd/net0")
                case _:
                    await lab.links.set_link("odd/net0", "down")
        assert isinstance(caught[0], CannotAttach)
        is_told(caught[0], nic="odd/net0", state="wired so that its cable cannot change")


@pytest.mark.parametrize("model", ["virtio-net-pci", "vmxnet3"])
async def test_the_arguments_in_the_error_boot_a_nic_that_can_be_plugged(
    lab: Lab, model: str
) -> None:
    async with another_guest(lab, "odd", direct(model)):
        with pytest.raises(NotOnHub) as caught:
            await lab.links.plug("odd/net0", "blue")
    said = str(caught.value).partition("boot the guest with: ")[2].split()
    assert said == hub_args("net0", mac=MAC, model=model)
    async with another_guest(lab, "even", said):
        outcome = await lab.links.plug("even/net0", "blue", notify="silent")
        assert (outcome.nic.state, outcome.nic.mac) == (NicState.PLUGGED, MAC)
        assert outcome.nic.model == model


@pytest.mark.parametrize(
    ("device", "alias"),
    [("virtio-net-pci,id=net0", "net0"), ("virtio-net-pci,netdev=wall", "virtio-net-pci.0")],
    ids=["no-backend", "no-id"],
)
async def test_a_nic_without_backend_or_id_gets_its_arguments_too(
    lab: Lab, device: str, alias: str
) -> None:
    wall = ["-netdev", "user,id=wall"]
    async with another_guest(lab, "odd", [*wall, "-device", f"{device},mac={MAC}"]):
        with pytest.raises(NotOnHub) as caught:
            await lab.links.plug(f"odd/{alias}", "blue")
    said = str(caught.value).partition("boot the guest with: ")[2].split()
    assert said == hub_args(alias, mac=MAC)
    async with another_guest(lab, "even", said):
        assert (await lab.links.plug(f"even/{alias}", "blue", notify="silent")).changed


async def test_a_nic_that_is_on_two_cables_at_once(lab: Lab) -> None:
    async with another_guest(lab, "odd", [*HUB, *DEVICE, *SINK, *cable(1), *cable(2)]):
        async with refused(lab, HubCrowded, "p1", "p2") as caught:
            await lab.links.plug("odd/net0", "blue")
        is_told(caught[0], nic="odd/net0", state="on a cable that linkmgr did not plug")
        async with refused(lab, HubCrowded, "p1"):
            await lab.links.unplug("odd/net0")


async def test_a_sink_that_is_added_while_the_guest_runs_makes_its_hub_whole(lab: Lab) -> None:
    async with another_guest(lab, "odd", [*HUB, *DEVICE]) as guest:
        assert (await lab.links.nic("odd/net0")).state is NicState.UNMANAGED
        await guest.qmp("netdev_add", type="hubport", id="sink", hubid=5)
        assert (await lab.links.plug("odd/net0", "blue", notify="silent")).changed
        assert (await lab.links.unplug("odd/net0")).nic.state is NicState.UNPLUGGED


async def test_one_nic_that_cannot_be_plugged_keeps_no_other_from_it(lab: Lab) -> None:
    good = hub_args("net5", mac=mac_of(7, 5))
    async with another_guest(lab, "odd", [*HUB, *DEVICE, *SINK, *cable(1), *cable(2), *good]):
        assert (await lab.links.plug("odd/net5", "blue", notify="silent")).changed


async def test_the_sink_in_the_error_makes_a_hub_whole(lab: Lab) -> None:
    async with another_guest(lab, "odd", [*HUB, *DEVICE]):
        with pytest.raises(NoSink) as caught:
            await lab.links.plug("odd/net0", "blue")
    said = str(caught.value).partition("in addition: ")[2].split()
    async with another_guest(lab, "even", [*HUB, *said, *DEVICE]):
        outcome = await lab.links.plug("even/net0", "blue", notify="silent")
        assert outcome.nic.state is NicState.PLUGGED


# --- MTU ------------------------------------------------------------------------------------------
async def test_a_network_that_carries_more_than_the_nic_takes(lab: Lab) -> None:
    await lab.sh("ip link add br-jumbo type bridge && ip link set br-jumbo mtu 9000 up")
    await lab.links.create_network("jumbo", "bridge", bridge="br-jumbo")
    try:
        async with refused(lab, MtuTooLarge, "carries 9000 bytes", "host_mtu=9000") as caught:
            await lab.links.plug("web1/net0", "jumbo")
        is_told(caught[0], nic="web1/net0", state="plugged into blue:one, link up")
        async with another_guest(lab, "small", hub_args("net0", mac=MAC, model="vmxnet3")):
            with pytest.raises(MtuTooLarge) as raised:
                await lab.links.plug("small/net0", "jumbo")
            hint = raised.value.hint or ""
            assert hint.startswith("give the network mtu=1500, or boot a virtio-net-pci with host")
            assert "QEMU does not tell how much a NIC of model vmxnet3 takes" in hint
            assert "is known to take only 1500" in raised.value.what
        args = hub_args("net0", mac=MAC, host_mtu=9000)
        async with another_guest(lab, "jumbo", args):
            outcome = await lab.links.plug("jumbo/net0", "jumbo", notify="silent")
            assert outcome.nic.mtu == 9000
            assert outcome.nic.connection
            device = outcome.nic.connection.device
            assert int(Path(f"/sys/class/net/{device}/mtu").read_text()) == 9000
            await lab.links.plug("jumbo/net0", "green", notify="silent")  # 1500 is fine for it, too
    finally:
        await lab.links.delete_network("jumbo")
        await lab.sh("ip link del br-jumbo")


# --- VMs ------------------------------------------------------------------------------------------
async def test_the_same_vm_twice_is_the_same_vm(lab: Lab) -> None:
    nics = await lab.links.add_vm("web1", lab.guests["web1"].qmp_path)
    states = {str(nic.ref): nic.state for nic in nics}
    assert states == {"web1/net0": NicState.PLUGGED, "web1/net1": NicState.UNPLUGGED}


async def test_the_same_name_for_another_monitor(lab: Lab) -> None:
    async with refused(lab, AlreadyExists, "VM web1 exists with another monitor"):
        await lab.links.add_vm("web1", lab.guests["web1"].qmp2_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.qmp"


async def test_a_monitor_socket_that_does_not_exist(lab: Lab, path: Path) -> None:
    async with refused(lab, MonitorUnreachable, "there is no monitor socket", str(path)):
        await lab.links.add_vm("odd", path)


async def test_a_monitor_socket_that_nobody_listens_at(lab: Lab, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    async with refused(lab, MonitorUnreachable, "nobody listens", str(path)):
        await lab.links.add_vm("odd", path)


async def test_a_monitor_socket_that_is_a_file(lab: Lab, path: Path) -> None:
    path.write_text("no socket")
    async with refused(lab, MonitorUnreachable, str(path)):
        await lab.links.add_vm("odd", path)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak QMP"),
        (b"(qemu) ", "sent no greeting within 1 s"),
        (b"", "sent no greeting within 1 s"),
        (b'{"hello": "world"}\r\n', "does not speak QMP"),
    ],
    ids=["ssh", "hmp", "silent", "json"],
)
async def test_a_monitor_socket_that_is_no_monitor(
    lab: Lab, path: Path, says: bytes, words: str
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(talk, path)
    async with server, refused(lab, MonitorUnreachable, words):
        await lab.links.add_vm("odd", path)


async def test_a_monitor_that_hangs_up(lab: Lab, path: Path) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(hang_up, path)
    async with server, refused(lab, MonitorUnreachable, "hung up before it sent a greeting"):
        await lab.links.add_vm("odd", path)


async def test_a_monitor_that_somebody_else_uses(lab: Lab) -> None:
    """As when libvirt or a shell has it."""
    path = lab.guests["web1"].qmp2_path
    with socket.socket(socket.AF_UNIX) as shell:
        shell.connect(os.fspath(path))
        async with refused(lab, MonitorUnreachable, "one client at a time"):
            await lab.links.add_vm("odd", path)


async def test_a_monitor_that_another_vm_has_by_whatever_path(lab: Lab, tmp_path: Path) -> None:
    path = lab.guests["web1"].qmp_path
    link = tmp_path / "link.qmp"
    link.symlink_to(path)
    for each in (path, link):
        async with refused(lab, Conflict, f"the monitor {each} is that of VM web1", "use VM web1"):
            await lab.links.add_vm("odd", each)
