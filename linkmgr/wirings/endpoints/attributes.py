"""The attributes of a cable's devices: who may change each, what is found, and how it is repaired.

One table for `check`, for the repair of drift, for a replug that keeps its device, and for the
documentation (docs/operations.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from linkmgr.errors import HostError
from linkmgr.host import Host, NetDevice, PortState, device_name, tap_mac
from linkmgr.host.netlink.link import DEVICE_GROUP
from linkmgr.model import BridgeEndpoint, DirectEndpoint, DirectMode, FdEndpoint
from linkmgr.text.untrusted import ip_device, shell_word
from linkmgr.wirings.base import Cable
from linkmgr.wirings.endpoints.device import PREFIX, tag_of

REPLUG_HINT = "unplug it and plug it again"
_TAP, _MACVTAP, _BOTH = "tap", "macvtap", "tap, macvtap"


class Repair(StrEnum):
    """How an attribute that was changed becomes what it was."""

    IN_PLACE = "set again"  #: on the device that there is
    REPLUG = "plugged again"  #: by a replug into the NIC's own port
    NONE = "no"


@dataclass(frozen=True)
class CableDevices:
    """A cable, and its devices as they are at this moment.

    :param maybe_device: the tap or macvtap; ``None`` when it is gone.
    :param target: the bridge or the parent; ``None`` when it is gone, or the cable has none.
    :param renamed: whether nothing goes by the name that `target` had.
    """

    cable: Cable
    maybe_device: NetDevice | None
    target: NetDevice | None
    renamed: bool = False

    @property
    def device(self) -> NetDevice:
        """The tap or macvtap, for attributes that are looked at only when there is one."""
        assert self.maybe_device is not None
        return self.maybe_device

    @property
    def where(self) -> str:
        """Name of the bridge or the parent; empty for a cable that has none."""
        match self.cable.endpoint:
            case BridgeEndpoint(bridge=name) | DirectEndpoint(parent=name):
                return name
            case _:
                return ""

    @property
    def mtu(self) -> int:
        """Bytes that the network carries."""
        endpoint = self.cable.endpoint
        return endpoint.mtu if isinstance(endpoint, BridgeEndpoint | DirectEndpoint) else 0

    def option(self, name: str) -> bool:
        """Whether an option of the bridge port is to be on."""
        return bool(getattr(self.cable.endpoint, name))

    def has(self, option: str, wanted: bool) -> bool:
        """Whether an option of the bridge port is as wanted, or cannot be seen."""
        options = self.device.port_options
        return options is None or (option in options) is wanted


@dataclass(frozen=True)
class Attribute:
    """One thing that linkmgr sets, or goes by.

    :param name: for the documentation, with `kinds` and `changed_by`.
    :param kinds: of device that have it.
    :param changed_by: who else may change it.
    :param code: of the finding, stable.
    :param find_fault: returns what is wrong, as a sentence; ``None`` when nothing is.
    :param hint: what a person can do.
    :param apply: sets it on the device.
    :param masks_rest: whether the attributes after it are not looked at when it is wrong.
    """

    name: str
    kinds: str
    changed_by: str
    code: str
    find_fault: Callable[[CableDevices], str | None]
    hint: Callable[[CableDevices], str]
    repair: Repair = Repair.IN_PLACE
    apply: Callable[[Host, CableDevices], Awaitable[object]] | None = None
    masks_rest: bool = False


@dataclass(frozen=True)
class Fault:
    """An attribute that is not what it should be."""

    attribute: Attribute
    view: CableDevices
    what: str

    @property
    def code(self) -> str:
        """See `Attribute.code`."""
        return self.attribute.code

    @property
    def hint(self) -> str:
        """See `Attribute.hint`."""
        return self.attribute.hint(self.view)


def _upper(cable: Cable, device: NetDevice) -> int | None:
    """Index of the device that a cable's device is on."""
    return device.master if isinstance(cable.endpoint, BridgeEndpoint) else device.parent


def _set(view: CableDevices, words: str) -> str:
    return f"run 'ip link set {ip_device(view.device.name)} {words}'"


def _target(view: CableDevices) -> str:
    """The bridge or parent as it is called now, as a word of a command."""
    return shell_word(view.target.name if view.target else view.where)


def _port(view: CableDevices, words: str) -> str:
    return f"run 'bridge link set dev {shell_word(view.device.name)} {words}'"


def _on(wanted: bool) -> str:
    return "on" if wanted else "off"


def _gone(view: CableDevices) -> str | None:
    if view.maybe_device is None:
        return f"its device {view.cable.device} does not exist any more"
    return None


def _make_again(view: CableDevices) -> str:
    if view.where and view.target is None:
        return f"make {view.where} again, then unplug the NIC and plug it again"
    return REPLUG_HINT


def _untagged(view: CableDevices) -> str | None:
    if view.device.owner_tag == tag_of(view.cable):
        return None
    return f"device {view.device.name} does not carry its tag"


async def _tag(host: Host, view: CableDevices) -> None:
    # Another device may have a name that was asked for, but hardly one that we made up.
    if view.device.name == device_name(PREFIX, view.cable.id):
        await host.set_alias(view.device.index, tag_of(view.cable))


def _endpoint_gone(view: CableDevices) -> str | None:
    return f"{view.where} does not exist any more" if view.where and not view.target else None


def _moved(view: CableDevices) -> str | None:
    if view.target is None:
        return None
    where = _upper(view.cable, view.device)
    # A macvtap on a macvlan sits beside it; an older linkmgr wrote down what was named.
    beside = view.target.parent if view.target.kind in {"macvlan", "macvtap"} else None
    if where is not None and where in {view.target.index, beside}:
        return None
    return f"device {view.device.name} is not on {view.where} any more"


def _renamed(view: CableDevices) -> str | None:
    if not view.renamed or view.target is None:
        return None
    return f"there is no {view.where} any more; device {view.device.name} is on {view.target.name}"


def _endpoint_down(view: CableDevices) -> str | None:
    return f"{view.target.name} is down" if view.target and not view.target.up else None


async def _endpoint_up(host: Host, view: CableDevices) -> None:
    if view.target is not None:
        await host.set_up(view.target.index)


def _down(view: CableDevices) -> str | None:
    return None if view.device.up else f"device {view.device.name} is down"


def _no_carrier(view: CableDevices) -> str | None:
    if not view.device.up or view.device.carrier:
        return None
    return f"the carrier of device {view.device.name} is off"


def _shut(view: CableDevices) -> str | None:
    device = view.device
    if device.up and device.carrier and device.port_state is PortState.DISABLED:
        return f"device {device.name} is a port of {view.where} that is shut"
    return None


def _mac(view: CableDevices) -> str:
    """The address that a macvtap has to have: what the guest was allowed, else its NIC's own."""
    return view.cable.allowed_mac or view.cable.mac


def _macvtap_mac(view: CableDevices) -> str | None:
    if view.device.mac == _mac(view):
        return None
    return (
        f"device {view.device.name} has the address {view.device.mac}, so frames for "
        f"{_mac(view)} do not reach the guest"
    )


def _tap_mac(view: CableDevices) -> str | None:
    if view.device.mac.startswith("fe:"):
        return None
    return (
        f"device {view.device.name} has the address {view.device.mac}, which its bridge may take, "
        "or keep from the guest"
    )


def _carries_less(view: CableDevices) -> bool:
    parent = view.target if isinstance(view.cable.endpoint, DirectEndpoint) else None
    return parent is not None and parent.mtu < view.mtu


def _parent_mtu(view: CableDevices) -> str | None:
    if view.target is None or not _carries_less(view):
        return None
    return f"{view.where} carries only {view.target.mtu} bytes, its network {view.mtu}"


def _mtu(view: CableDevices) -> str | None:
    if view.device.mtu == view.mtu or _carries_less(view):
        return None
    return f"device {view.device.name} carries {view.device.mtu} bytes, its network {view.mtu}"


def _allmulti(view: CableDevices) -> str | None:
    if view.device.allmulti:
        return None
    return f"device {view.device.name} does not take all multicast, so the guest misses some"


def _promisc(view: CableDevices) -> str | None:
    endpoint, wanted = view.cable.endpoint, view.cable.allowed_promisc
    if not isinstance(endpoint, DirectEndpoint) or endpoint.mode is not DirectMode.PASSTHRU:
        return None  # in other modes it changes nothing
    if view.device.promisc is wanted:
        return None
    return f"device {view.device.name} has promiscuity {_on(not wanted)}, not {_on(wanted)}"


def _mode(view: CableDevices) -> str | None:
    endpoint = view.cable.endpoint
    if not isinstance(endpoint, DirectEndpoint) or view.device.mode == endpoint.mode:
        return None
    return f"device {view.device.name} is in {view.device.mode} mode, not {endpoint.mode}"


async def _set_mode(host: Host, view: CableDevices) -> None:
    assert isinstance(view.cable.endpoint, DirectEndpoint)
    await host.set_macvtap_mode(view.device.index, view.cable.endpoint.mode)


def _ipv6(view: CableDevices) -> str | None:
    if view.device.ipv6_disabled:
        return None
    return f"device {view.device.name} has IPv6 on, and may speak in the guest's network"


def _silencing(name: str) -> str:
    # With slashes: a name may have dots.
    off = f"sysctl -qw net/ipv6/conf/{shell_word(name)}/disable_ipv6=1"
    return f"run 'ip link set {ip_device(name)} addrgenmode none && {off}'"


def _group(view: CableDevices) -> str | None:
    if view.device.group == DEVICE_GROUP:
        return None
    return (
        f"device {view.device.name} is in group {view.device.group}, not {DEVICE_GROUP}, so under "
        "another name udev and what goes by it take it for a device as any other"
    )


def _bridge_attribute(
    name: str,
    code: str,
    found: Callable[[CableDevices, NetDevice], str | None],
    hint: Callable[[CableDevices, str], str],
) -> Attribute:
    """An attribute of a bridge that linkmgr made. It is an operator's to change, and so stays.

    :param hint: how it is set again, by the bridge's name.
    """

    def of_ours(view: CableDevices) -> str | None:
        bridge = view.target
        if bridge is None or bridge.owner_tag is None or bridge.owner_tag.network is None:
            return None
        what = found(view, bridge)
        return what and f"{bridge.name}, which linkmgr made, {what}"

    return Attribute(
        f"{name}, of a bridge that linkmgr made", _TAP, "an operator", code, of_ours,
        lambda view: f"if that is not wanted, {hint(view, view.target.name)}"
        if view.target else REPLUG_HINT, Repair.NONE,
    )  # fmt: skip


def _bridge_mtu(view: CableDevices, bridge: NetDevice) -> str | None:
    carries = f"carries {bridge.mtu} bytes, its network {view.mtu}"
    return None if bridge.mtu == view.mtu else carries


def _port_option(name: str, of_bridge: str) -> Attribute:
    """An option of the port of a cable, as its network or port says."""

    def found(view: CableDevices) -> str | None:
        if view.has(name, view.option(name)):
            return None
        wanted = view.option(name)
        return f"device {view.device.name} has {name} {_on(not wanted)}, not {_on(wanted)}"

    async def apply(host: Host, view: CableDevices) -> None:
        endpoint = view.cable.endpoint
        assert isinstance(endpoint, BridgeEndpoint)
        await host.set_port_options(
            view.device.index,
            isolated=endpoint.isolated, hairpin=endpoint.hairpin, learning=endpoint.learning,
        )  # fmt: skip

    return Attribute(
        of_bridge, _TAP, "nobody", f"{name}-changed", found,
        lambda view: _port(view, f"{name} {_on(view.option(name))}"), apply=apply,
    )  # fmt: skip


#: Options of a port without which less reaches the guest, and what they are in a new port.
_FLOODS = {"flood": True, "mcast_flood": True, "bcast_flood": True, "locked": False}


def _cut(view: CableDevices) -> dict[str, bool]:
    return {name: good for name, good in _FLOODS.items() if not view.has(name, good)}


def _flood(view: CableDevices) -> str | None:
    if not (cut := _cut(view)):
        return None
    said = " and ".join(f"{name} {_on(not good)}" for name, good in cut.items())
    return f"device {view.device.name} has {said}, so not all frames pass"


def _flood_hint(view: CableDevices) -> str:
    words = " ".join(f"{name} {_on(good)}" for name, good in _cut(view).items())
    return f"if that is not wanted, {_port(view, words)}"


#: In the order in which they are looked at.
ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute("the device itself", _BOTH, "nobody", "device-gone", _gone, _make_again,
              Repair.REPLUG, masks_rest=True),
    Attribute("interface alias", _BOTH, "nobody", "not-ours", _untagged, lambda _: REPLUG_HINT,
              apply=_tag),
    Attribute("up", _BOTH, "nobody", "device-down", _down, lambda view: _set(view, "up"),
              apply=lambda host, view: host.set_up(view.device.index)),
    Attribute("carrier", _TAP, "nobody", "carrier-off", _no_carrier,
              lambda view: _set(view, "carrier on"),
              apply=lambda host, view: host.set_carrier(view.device.index)),
    Attribute("the bridge or parent itself", _BOTH, "an operator", "endpoint-gone", _endpoint_gone,
              _make_again, Repair.REPLUG, masks_rest=True),
    Attribute("its bridge or parent", _BOTH, "nobody", "moved", _moved, _make_again, Repair.REPLUG,
              masks_rest=True),
    Attribute("name of the bridge or parent", _BOTH, "an operator", "endpoint-renamed", _renamed,
              lambda view: f"run 'ip link property add dev {_target(view)} "
                           f"altname {shell_word(view.where)}', or make the network "
                               "anew", Repair.NONE),
    Attribute("up, of the bridge or parent", _BOTH, "nobody", "endpoint-down", _endpoint_down,
              lambda view: f"run 'ip link set dev {_target(view)} up'",
              apply=_endpoint_up),
    Attribute("port state", _TAP, "a spanning tree", "port-shut", _shut,
              lambda view: _port(view, "state 3"),
              apply=lambda host, view: host.enable_port(view.device.name)),
    Attribute("MTU of the parent", _MACVTAP, "an operator", "endpoint-mtu", _parent_mtu,
              lambda view: f"run 'ip link set {ip_device(view.where)} mtu "
                  f"{view.mtu}'", Repair.NONE),
    Attribute("MTU", _BOTH, "nobody", "mtu-changed", _mtu,
              lambda view: _set(view, f"mtu {view.mtu}"),
              apply=lambda host, view: host.set_mtu(view.device.index, view.mtu)),
    Attribute("address", _MACVTAP, "the guest, where its port trusts it", "address-changed",
              _macvtap_mac, lambda view: _set(view, f"address {_mac(view)}"),
              apply=lambda host, view: host.set_mac(view.device.index, _mac(view))),
    Attribute("address, begins with fe:", _TAP, "nobody", "address-changed", _tap_mac,
              lambda view: _set(view, f"address {tap_mac()}"),
              apply=lambda host, view: host.set_mac(view.device.index, tap_mac())),
    Attribute("all multicast", _MACVTAP, "nobody", "allmulti-off", _allmulti,
              lambda view: _set(view, "allmulticast on"),
              apply=lambda host, view: host.set_allmulti(view.device.index)),
    Attribute("promiscuity, in passthru mode", _MACVTAP, "the guest, where its port trusts it",
              "promisc-changed", _promisc,
              lambda view: _set(view, f"promisc {_on(view.cable.allowed_promisc)}"),
              apply=lambda host, view: host.set_promiscuity(
                  view.device.index, view.cable.allowed_promisc)),
    Attribute("mode", _MACVTAP, "nobody", "mode-changed", _mode,
              lambda view: _set(view, f"type macvtap mode {view.cable.endpoint.mode}"
                                if isinstance(view.cable.endpoint, DirectEndpoint) else ""),
              apply=_set_mode),
    Attribute("IPv6 off, addrgenmode none", _BOTH, "nobody", "ipv6-on", _ipv6,
              lambda view: _silencing(view.device.name),
              apply=lambda host, view: host.disable_ipv6(view.device)),
    _port_option("isolated", "port option isolated"),
    _port_option("hairpin", "port option hairpin"),
    _port_option("learning", "port option learning"),
    Attribute("port options flood, mcast_flood, bcast_flood, locked", _TAP, "an operator",
              "port-flood", _flood, _flood_hint, Repair.NONE),
    Attribute("device group", _BOTH, "an operator", "group-changed", _group,
              lambda view: f"if that is not wanted, {_set(view, f'group {DEVICE_GROUP}')}",
              Repair.NONE),
    _bridge_attribute(
        "MTU", "bridge-mtu", _bridge_mtu,
        lambda view, name: f"run 'ip link set {ip_device(name)} mtu {view.mtu}'"),
    _bridge_attribute(
        "no multicast snooping", "bridge-snooping",
        lambda _, bridge: "snoops multicast, and reports itself to every port"
        if bridge.snooping else None,
        lambda _, name: f"run 'ip link set {ip_device(name)} type bridge mcast_snooping 0'"),
    _bridge_attribute(
        "no spanning tree", "bridge-stp",
        lambda _, bridge: "has a spanning tree, so a new port waits before it forwards"
        if bridge.spanning_tree else None,
        lambda _, name: f"run 'ip link set {ip_device(name)} type bridge stp_state 0'"),
    _bridge_attribute(
        "IPv6 off, addrgenmode none", "bridge-ipv6",
        lambda _, bridge: None if bridge.ipv6_disabled
        else "has IPv6 on, and may speak in the guests' network",
        lambda _, name: _silencing(name)),
    _bridge_attribute(
        "device group", "bridge-group",
        lambda _, bridge: f"is in group {bridge.group}, not {DEVICE_GROUP}"
        if bridge.group != DEVICE_GROUP else None,
        lambda _, name: f"run 'ip link set {ip_device(name)} group {DEVICE_GROUP}'"),
)  # fmt: skip


async def read_devices(host: Host, cables: Iterable[Cable]) -> dict[str, NetDevice]:
    """Read the devices of cables, by the names that the cables have for them.

    A cable's device that was renamed is found by its tag, and the cable takes the name it has now.
    """
    looked = [(each, each.device) for each in cables if device_names(each)]
    found = await host.find_devices({name for each, _ in looked for name in device_names(each)})
    lost = {tag_of(each): (each, name) for each, name in looked if not _is_tagged(each, found)}
    if lost:  # seldom: this reads all devices of the host
        for device in await host.list_devices(consistent=False):
            cable, name = (
                lost.get(device.owner_tag, (None, None)) if device.owner_tag else (None, None)
            )
            if cable is not None and cable.device == name:  # no verb has it otherwise meanwhile
                cable.device = device.name
                found[device.name] = device
    for each, _ in looked:
        own, where = found.get(each.device or ""), CableDevices(each, None, None).where
        upper = _upper(each, own) if own and where and where not in found else None
        if upper is not None and (target := await host.find_device(upper)) is not None:
            found[target.name] = target
    return found


def device_names(cable: Cable) -> list[str]:
    """The devices that `find_faults` looks at."""
    if isinstance(cable.endpoint, FdEndpoint):
        return []
    return [name for name in (cable.device, CableDevices(cable, None, None).where) if name]


def _is_tagged(cable: Cable, found: Mapping[str, NetDevice]) -> bool:
    device = found.get(cable.device or "")
    return device is not None and device.owner_tag == tag_of(cable)


def find_faults(cable: Cable, devices: Mapping[str, NetDevice]) -> list[Fault]:
    """Compare a cable's devices with what they should be.

    :param devices: as `read_devices` returns them.
    """
    if isinstance(cable.endpoint, FdEndpoint):
        return []  # its device is its owner's, and may be in another network namespace
    view = CableDevices(cable, devices.get(cable.device or ""), None)
    target, renamed = devices.get(view.where), False
    if view.where and target is None and view.maybe_device is not None:
        upper = _upper(cable, view.maybe_device)
        target = next((device for device in devices.values() if device.index == upper), None)
        renamed = target is not None
    view = CableDevices(cable, view.maybe_device, target, renamed)
    macvtap = isinstance(cable.endpoint, DirectEndpoint)
    found = []
    for attribute in ATTRIBUTES:
        if attribute.kinds not in {_BOTH, _MACVTAP if macvtap else _TAP}:
            continue
        if (what := attribute.find_fault(view)) is not None:
            found.append(Fault(attribute, view, what))
            if attribute.masks_rest:
                break
    return found


async def repair_in_place(host: Host, faults: list[Fault]) -> bool:
    """Repair what can be set on the existing device.

    :return: whether that is all that is to be repaired: else the NIC has to be plugged again.
    :raise HostError: when the kernel refuses.
    """
    if any(fault.attribute.repair is Repair.REPLUG for fault in faults):
        return False
    for fault in faults:
        if fault.attribute.apply is not None:
            await fault.attribute.apply(host, fault.view)
    return True


async def foreign_settings(host: Host, cable: Cable, device: NetDevice) -> list[str]:
    """List settings of others on a cable's device, which a new device will not have."""
    found = []
    with contextlib.suppress(HostError):  # it goes just now
        if kinds := await host.traffic_control(device.index):
            found.append(f"traffic control ({', '.join(kinds)})")
    if device.group not in {DEVICE_GROUP, 0}:  # an older linkmgr made its devices in group 0
        found.append(f"group {device.group}")
    view = CableDevices(cable, device, None)
    if isinstance(cable.endpoint, BridgeEndpoint):
        found += [f"{name} {_on(not good)}" for name, good in _cut(view).items()]
    return found
