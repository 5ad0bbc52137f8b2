"""Forward chains of nf_tables that drop, and whether bridged frames pass through them.

br_netfilter hands what one port of a bridge sends to another to the FORWARD chains of iptables and
nftables, as if it were routed (Documentation/networking/bridge.rst). With the policy that Docker
sets, IPv4 on a bridge is dead then while ARP works. Read over nfnetlink, without the nft program:
netfilter/nf_tables_api.c has the messages. Tables of the old iptables are not visible here.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from linkmgr.host.netlink.attributes import attr, attrs_of, each_attr

#: For the kernel's answer, which comes at once unless the rules change all the time.
NFNETLINK_TIMEOUT_S = 2.0
#: Of all chains, and of one table's rules: 3,000 of them. To read more would take long.
RULESET_BYTES_MAX = 1 << 20

_NLMSGHDR = struct.Struct("=IHHII")
_NFGENMSG = struct.Struct(">BBH")
_DUMP, _DONE, _ERROR = 0x301, 3, 2
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GETCHAIN, _GETRULE = _SUBSYSTEM | 4, _SUBSYSTEM | 7
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY = 1, 3, 4, 5
_HOOK_NUMBER, _FORWARD, _DROP, _ACCEPT = 1, 2, 0, 1
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_IMMEDIATE_DATA, _DATA_VERDICT, _VERDICT_CODE = 2, 2, 1
_FAMILIES = {1: "inet", 2: "ip", 7: "bridge", 10: "ip6"}
_SETTINGS = Path("/proc/sys/net/bridge")


@dataclass(frozen=True)
class DropChain:
    """A base chain at the hook forward that drops what none of its rules accepts.

    :param family: of nftables: ``ip``, ``ip6``, ``inet`` or ``bridge``.
    :param rules: the expressions of all rules of its table, as the kernel has them.
    """

    family: str
    table: str
    chain: str
    rules: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"chain {self.chain} of table {self.family} {self.table}"

    def mentions(self, bridge: str | None = None) -> bool:
        """Whether its rules say anything of bridged frames, or of a bridge by its name.

        What exactly is not worked out: an administrator who has written such a rule knows.
        """
        words = [b"physdev"] + ([bridge.encode() + b"\0"] if bridge else [])
        return any(word in rule for rule in self.rules for word in words)


def passes_forward_chains(family: str, bridge: str | None = None) -> bool:
    """Whether frames between the ports of a bridge pass the forward chains of a family.

    :param bridge: whose own setting counts, too; ``None`` asks for the namespace's alone.
    """
    if family == "bridge":
        return True
    names = {"ip": ["iptables"], "ip6": ["ip6tables"], "inet": ["iptables", "ip6tables"]}[family]
    paths = [_SETTINGS / f"bridge-nf-call-{name}" for name in names]
    if bridge is not None:
        paths += [Path(f"/sys/class/net/{bridge}/bridge/nf_call_{name}") for name in names]
    return any(_is_one(path) for path in paths)


def _is_one(path: Path) -> bool:
    try:
        return path.read_text(encoding="ascii").strip() == "1"
    except (OSError, ValueError):  # br_netfilter is not loaded
        return False


def read_drop_chains() -> list[DropChain]:
    """Read the forward chains that drop by their policy or last rule, in this thread's namespace.

    :raise OSError: the kernel does not say, or says more than is read; EPERM without
        CAP_NET_ADMIN.
    """
    found = []
    for family, body in _dump(_GETCHAIN, 0, b""):
        chain = attrs_of(body)
        hook = attrs_of(chain.get(_CHAIN_HOOK))
        if family in _FAMILIES and _number(hook.get(_HOOK_NUMBER)) == _FORWARD:
            policy = _number(chain.get(_CHAIN_POLICY)) == _DROP
            found.append((family, _text(chain[_CHAIN_TABLE]), _text(chain[_CHAIN_NAME]), policy))
    return [drops for each in found if (drops := _with_rules(*each)) is not None]


def _with_rules(family: int, table: str, chain: str, drops: bool) -> DropChain | None:
    """Read the rules of a chain's table; ``None`` if it accepts after all.

    :param drops: whether its policy does.
    """
    rules: list[bytes] = []
    verdict: bool | None = None
    for _, body in _dump(_GETRULE, family, attr(_RULE_TABLE, table.encode() + b"\0")):
        rule = attrs_of(body)
        if _text(rule.get(_RULE_TABLE)) != table:  # some kernels give those of all tables
            continue
        expressions = rule.get(_RULE_EXPRESSIONS, memoryview(b""))
        rules.append(bytes(expressions))
        if verdict is None and _text(rule.get(_RULE_CHAIN)) == chain:
            verdict = _accepts(expressions)  # what follows the first one is never reached
    accepts = verdict if verdict is not None else not drops
    return None if accepts else DropChain(_FAMILIES[family], table, chain, tuple(rules))


def _accepts(expressions: memoryview) -> bool | None:
    """Whether a rule accepts or drops everything; ``None`` if it has a condition or only counts."""
    for _, element in each_attr(expressions):
        expression = attrs_of(element)
        data = expression.get(_EXPRESSION_DATA)
        match _text(expression.get(_EXPRESSION_NAME)):
            case "counter" | "log":
                pass
            case "immediate":
                value = attrs_of(attrs_of(data).get(_IMMEDIATE_DATA))
                verdict = _number(attrs_of(value.get(_DATA_VERDICT)).get(_VERDICT_CODE))
                return {_ACCEPT: True, _DROP: False}.get(verdict) if verdict is not None else None
            case "reject":
                return False
            case "target":  # of xtables, as iptables-nft writes it
                return False if data is not None and b"REJECT\0" in bytes(data) else None
            case _:
                return None
    return None


def _dump(kind: int, family: int, body: bytes) -> Iterator[tuple[int, memoryview]]:
    """Ask for all objects of a kind: the family of each, and its attributes."""
    message = _NFGENMSG.pack(family, 0, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12) as sock:
        sock.settimeout(NFNETLINK_TIMEOUT_S)
        sock.send(_NLMSGHDR.pack(_NLMSGHDR.size + len(message), kind, _DUMP, 1, 0) + message)
        size = 0
        while size <= RULESET_BYTES_MAX:
            view = memoryview(sock.recv(1 << 17))
            size += len(view)
            while len(view) >= _NLMSGHDR.size:
                length, message_type, _, _, _ = _NLMSGHDR.unpack_from(view)
                content = view[_NLMSGHDR.size : length]
                if message_type == _DONE:
                    return
                if message_type == _ERROR:
                    number = -struct.unpack_from("=i", content)[0]
                    raise OSError(number, os.strerror(number))
                yield content[0], content[_NFGENMSG.size :]
                view = view[max(_NLMSGHDR.size, (length + 3) & ~3) :]
    raise OSError(f"there are more than {RULESET_BYTES_MAX >> 20} MiB of rules")


def _number(value: memoryview | None) -> int | None:
    return None if value is None else int.from_bytes(value, "big")  # nf_tables' own order


def _text(value: memoryview | None) -> str:
    return "" if value is None else bytes(value).rstrip(b"\0").decode(errors="replace")
