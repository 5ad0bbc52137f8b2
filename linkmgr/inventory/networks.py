"""Networks and ports: what was created, and which NIC is on which port."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from linkmgr.drivers import NetworkDriver, find_driver
from linkmgr.drivers.fd import FD_NETWORK, fd_port, refuse_reserved
from linkmgr.errors import (
    AlreadyExists,
    BadName,
    LinkmgrError,
    MacInUse,
    NetworkInUse,
    PortInUse,
    UnknownNetwork,
    UnknownPort,
)
from linkmgr.host import Host
from linkmgr.model import Drift, Network, NicRef, Port, check_name, written
from linkmgr.text.suggest import hint_for_unknown, join_names
from linkmgr.text.untrusted import quoted

log = logging.getLogger(__name__)


class Networks:
    """All networks and ports. Nothing here waits, so that a look and a claim are one step."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._drivers: dict[str, NetworkDriver] = {}
        self._networks: dict[str, Network] = {}
        self._ports: dict[tuple[str, str], Port] = {}
        self._claims: dict[tuple[str, str], NicRef] = {}

    def __iter__(self) -> Iterator[Network]:
        return iter(list(self._networks.values()))

    def driver(self, name: str) -> NetworkDriver:
        """The one instance of a driver.

        :raise BadOption: when there is no such driver.
        """
        if name not in self._drivers:
            self._drivers[name] = find_driver(name)(self._host)
        return self._drivers[name]

    def create(
        self, name: str, driver: str, options: dict[str, Any], drift: Drift = Drift.REPAIR
    ) -> Network:
        """Describe a network. The same description again is fine.

        :raise BadRequest: when the name or an option is wrong.
        :raise AlreadyExists: when the name has another description.
        """
        refuse_reserved(name)
        network = Network(name, driver, options, drift)
        network = replace(network, options=self.driver(driver).check_network(network))
        known = self._networks.setdefault(name, network)
        if known != network:
            raise AlreadyExists(
                f"network {name} exists with other properties: driver {known.driver}, drift "
                f"{known.drift}, {written(known.options) or 'no options'}",
                hint="delete it first, or choose another name",
            )
        return known

    def find(self, name: str) -> Network | None:
        """The network of that name, if there is one."""
        return self._networks.get(name)

    def restore(self, network: Network) -> None:
        """Have a network again that was created before.

        :raise BadOption: when its driver does not exist any more.
        """
        self.driver(network.driver)
        self._networks.setdefault(network.name, network)

    def restore_port(self, port: Port) -> None:
        """Have a port again that was created before."""
        if port.network.name in self._networks:
            self._ports.setdefault((port.network.name, port.name), port)

    def recorded(self) -> tuple[list[Network], list[Port]]:
        """What belongs on disk: everything that was created."""
        return list(self._networks.values()), list(self._ports.values())

    def in_use(self) -> set[str]:
        """Names of the networks that NICs are plugged into."""
        return {network for network, _ in self._claims}

    def nics_on(self, network: str) -> set[NicRef]:
        """The NICs that are plugged into a network, or are on their way to it or from it."""
        return {nic for (net, _), nic in self._claims.items() if net == network}

    def may_make(self, networks: Iterable[Network]) -> set[str]:
        """Names of the devices that drivers may have made for these networks."""
        names: set[str] = set()
        for network in networks:
            with contextlib.suppress(LinkmgrError):  # its driver is not installed any more
                names |= self.driver(network.driver).may_make(network)
        return names

    async def tidy(self) -> None:
        """After a restart: free what drivers keep for networks that nobody is plugged into."""
        for network in self:
            if network.name not in self.in_use():
                try:
                    await self.driver(network.driver).forget_network(network)
                except LinkmgrError as error:
                    log.warning("network %s: what it keeps stays: %s", network, error)

    def delete(self, name: str) -> Network | None:
        """Forget a network; ``None`` if there is none.

        :raise NetworkInUse: when NICs or created ports are on it.
        """
        refuse_reserved(name)
        network = self._networks.get(check_name("network", name))
        if network is None:
            return None
        nics = [str(nic) for (net, _), nic in self._claims.items() if net == name]
        if nics:
            raise NetworkInUse(
                f"network {name} is in use by {join_names(nics)}", hint="unplug them first"
            )
        ports = [str(port) for port in self.ports(name)]
        if ports:
            what = f"network {name} has ports: {join_names(ports)}"
            raise NetworkInUse(what, hint="delete them first")
        return self._networks.pop(name)

    def create_port(self, network: str, name: str, options: dict[str, Any]) -> Port:
        """Describe a port. The same description again is fine.

        :raise UnknownNetwork: when there is no such network.
        :raise BadRequest: when the name or an option is wrong.
        :raise AlreadyExists: when the name has another description.
        """
        port = Port(self.network(network), name, options)
        port = replace(port, options=self.driver(port.network.driver).check_port(port))
        known = self._ports.setdefault((network, name), port)
        if known != port:
            raise AlreadyExists(
                f"port {port} exists with other options: {written(known.options) or 'none'}",
                hint="delete it first, or choose another name",
            )
        return known

    def delete_port(self, network: str, name: str) -> Port | None:
        """Forget a port; ``None`` if there is none.

        :raise PortInUse: when a NIC is plugged into it.
        """
        key = (check_name("network", network), check_name("port", name))
        if key in self._ports and key in self._claims:
            raise PortInUse(
                f"port {network}:{name} is in use by {self._claims[key]}", hint="unplug it first"
            )
        return self._ports.pop(key, None)

    def ports(self, network: str) -> list[Port]:
        """The ports that were created on a network."""
        return [port for (net, _), port in self._ports.items() if net == network]

    def network(self, name: str) -> Network:
        """Look a network up.

        :raise UnknownNetwork: when there is none.
        """
        check_name("network", name)
        if name == FD_NETWORK.name:
            return FD_NETWORK
        if name not in self._networks:
            raise UnknownNetwork(
                f"there is no network {name}",
                hint=hint_for_unknown(name, self._networks, "the networks are", "create it first"),
            )
        return self._networks[name]

    def port(self, target: str | Network | Port, nic: NicRef, uid: int | None = None) -> Port:
        """Look up where a NIC is to be plugged: a port, or a network and then its implied port.

        :param target: ``NETWORK``, ``NETWORK:PORT``, ``fd:NAME``, or what `create` and
            `create_port` returned.
        :param uid: whose fds ``fd:NAME`` is about; by default those of this process.
        :raise BadName: when the text is not of that form.
        :raise NotFound: when there is no such network or port.
        """
        if isinstance(target, Port) and not target.implied:
            target = str(target)
        elif isinstance(target, Port | Network):
            target = target.network.name if isinstance(target, Port) else target.name
        if not isinstance(target, str):
            raise BadName(f"{quoted(target)} is not a network", hint="write NETWORK[:PORT]")
        name, colon, port_name = target.partition(":")
        if name == FD_NETWORK.name:
            return fd_port(os.geteuid() if uid is None else uid, port_name)
        network = self.network(name)
        if not colon:
            return Port(network, str(nic), implied=True)
        key = (name, check_name("port", port_name))
        if key not in self._ports:
            known = [port.name for port in self.ports(name)]
            raise UnknownPort(
                f"network {name} has no port {port_name}",
                hint=hint_for_unknown(
                    port_name, known, "its ports are", f"create it first, or plug into {name}"
                ),
            )
        return self._ports[key]

    def refuse_same_address(
        self, port: Port, nic: NicRef, mac: str, mac_of: Callable[[NicRef], str | None]
    ) -> None:
        """Refuse a NIC whose address another one on the network has: both would hear half of it.

        :raise MacInUse: names the other one.
        """
        if port.network == FD_NETWORK:
            return  # its ports have nothing to do with each other
        for other in sorted(self.nics_on(port.network.name) - {nic}):
            if mac_of(other) == mac:
                raise MacInUse(
                    f"{other} has the same address, {mac}, and is on network {port.network} "
                    "already",
                    hint=f"unplug {other} first, or give one of them another address",
                )

    def claim(self, port: Port, nic: NicRef) -> None:
        """Reserve a port for a NIC.

        :raise PortInUse: when another NIC has it.
        """
        holder = self._claims.setdefault((port.network.name, port.name), nic)
        if holder != nic:
            raise PortInUse(
                f"port {port} is in use by {holder}", hint="unplug that NIC, or use another port"
            )

    def claimed(self, port: Port, nic: NicRef) -> Callable[[], Awaitable[None]]:
        """What ends a NIC's claim on the port. Only the first call does anything.

        For it may be called again long after, when the claim is one of another connection.
        """
        ended = False

        async def free() -> None:
            nonlocal ended
            if not ended:
                ended = True
                self.free(port, nic)

        return free

    def free(self, port: Port, nic: NicRef) -> None:
        """End the NIC's claim on a port; nothing happens if it has none."""
        key = (port.network.name, port.name)
        if self._claims.get(key) == nic:
            del self._claims[key]
