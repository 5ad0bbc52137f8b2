"""Inline networks: described in the XML of a domain by a driver and its options.

Such a network is named after what it is, so the same description is the same network wherever it is
asked for, and one that linkmgr has made can be told from one of somebody else without a record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from linkmgr.api import LinkApi
from linkmgr.drivers.options import Option, check_options
from linkmgr.drivers.registry import find_driver
from linkmgr.errors import LinkmgrError
from linkmgr.libvirt.xml.desired_cables import InlineNetwork
from linkmgr.model import Network, Options
from linkmgr.state.codec import to_json

log = logging.getLogger(__name__)


class InlineNetworks:
    """All inline networks."""

    def __init__(self, api: LinkApi) -> None:
        self._api = api
        self._held: Counter[str] = Counter()

    @asynccontextmanager
    async def network(self, inline: InlineNetwork) -> AsyncIterator[str]:
        """Make an inline network, if need be, and give its name; it stays meanwhile.

        :raise BadOption: when the driver does not exist, or has no such option.
        :raise AlreadyExists: when somebody has created another network of that name.
        """
        options = parse_options(inline)
        name = network_name(inline.driver, options)
        self._held[name] += 1
        try:
            await self._api.create_network(name, inline.driver, **options)
            yield name
        finally:
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]

    async def remove_unused(self) -> None:
        """Delete the inline networks that no NIC is plugged into."""
        there = [each for each in await self._api.networks() if is_inline(each)]
        used = {each.network for each in await self._api.connections()} if there else set()
        for network in there:
            if network.name not in used and not self._held[network.name]:
                with contextlib.suppress(LinkmgrError):  # in use after all, say
                    await self._api.delete_network(network.name)


def network_name(driver: str, options: Options) -> str:
    """Name an inline network: ``raw-bridge-1f0c3a9b27``.

    :param options: in their proper types.
    """
    text = json.dumps([driver, to_json(options)], sort_keys=True)
    return f"raw-{driver[:40]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def is_inline(network: Network) -> bool:
    """Whether a network is an inline one."""
    named = network.name.startswith("raw-")  # which costs less to know
    return named and network.name == network_name(network.driver, network.options)


def inline_network_of(network: Network) -> InlineNetwork | None:
    """The description of an inline network; ``None`` for any other network."""
    if not is_inline(network):
        return None
    options = {
        key: json.dumps(value) if isinstance(value, bool) else str(value)
        for key, value in network.options.items()
    }
    inline = InlineNetwork(network.driver, options)
    try:
        return (
            inline if network_name(inline.driver, parse_options(inline)) == network.name else None
        )
    except LinkmgrError:  # its driver is not installed any more, say
        return None


def parse_options(inline: InlineNetwork) -> dict[str, Any]:
    """Parse an inline network's options into their proper types.

    :raise BadOption: when there is no such driver, or it has no such option or value.
    """
    driver = find_driver(inline.driver)
    known = {**driver.port_options, **driver.network_options}
    options = {key: _typed(known.get(key), text) for key, text in inline.options.items()}
    return dict(check_options(f"the inline network {inline}", known, options))


def _typed(option: Option | None, text: str) -> object:
    if option and option.type is bool and text in ("true", "false"):
        return text == "true"
    if option and option.type is int and _is_whole(text):
        return int(text)
    return text


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 19
