"""Probes of the host's other network managers: which of those that run would take our devices."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from linkmgr.doctor.result import ProbeResult, Verdict, run_program

EXAMPLE_DEVICE = "lm0123abcd"  #: the name of a cable, as linkmgr makes it
DEVICE_PATTERNS = "lm???????? lmn??????????"
MAX_PROCESSES = 20_000  #: that are looked at; a host has some thousands
MAX_FILES = 500  #: of one manager's configuration that are read
MAX_FILE_BYTES = 1 << 20  #: of each of them

_AREA = "network"
_AGAIN = "install linkmgr again ('apt install --reinstall linkmgr', or 'make install'), then"
_DIRECTORIES = ("etc", "run", "usr/local/lib", "usr/lib", "lib")  # the first has the last word


async def managers(root: Path = Path("/")) -> list[ProbeResult]:
    """Look at NetworkManager, systemd-networkd, udev, dhcpcd and ConnMan, where they run.

    :param root: below which are /proc and the configurations.
    """
    running = await asyncio.to_thread(_running, root)
    results = []
    if "NetworkManager" in running:
        results.append(await _network_manager(root))
    for name, look in (
        ("systemd-network", _networkd), ("systemd-udevd", _udev), ("dhcpcd", _dhcpcd),
        ("connmand", _connman),
    ):  # fmt: skip
        if name in running:
            results.append(await asyncio.to_thread(look, root))
    return results


def _running(root: Path) -> set[str]:
    """The names of all processes, each at most 15 characters (TASK_COMM_LEN)."""
    names = set()
    for path in islice(root.glob("proc/[0-9]*/comm"), MAX_PROCESSES):
        with contextlib.suppress(OSError):
            names.add(path.read_text(errors="replace").strip())
    return names


def _read(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    for path in islice(paths, MAX_FILES):
        with contextlib.suppress(OSError), path.open(errors="replace") as file:
            yield path, file.read(MAX_FILE_BYTES)


def _files(root: Path, folder: str, pattern: str) -> list[Path]:
    """The files of a systemd-like configuration in their order; one in /etc hides its namesakes."""
    found: dict[str, Path] = {}
    for top in _DIRECTORIES:
        for path in (root / top / folder).glob(pattern):
            found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def _sections(text: str) -> Iterator[tuple[str, str, str]]:
    """Section, key and value of each setting of an ini file."""
    section = ""
    for line in text.splitlines():
        if match := re.fullmatch(r"\s*\[(.+)\]\s*", line):
            section = match[1]
        elif "=" in line and not line.lstrip().startswith(("#", ";")):
            key, _, value = line.partition("=")
            yield section, key.strip(), value.strip()


async def _network_manager(root: Path) -> ProbeResult:
    program = shutil.which("NetworkManager", path="/usr/sbin:/usr/bin")
    here = root == Path("/") and program is not None
    status, text = await run_program([str(program), "--print-config"]) if here else (1, "")
    if status:
        text = await asyncio.to_thread(_configuration, root)
    specs = ""
    for section, key, value in _sections(text):
        if section == "keyfile" and key == "unmanaged-devices":
            specs = value
        elif section == "keyfile" and key == "unmanaged-devices+":
            specs = f"{specs};{value}"
    if _in_specs(specs) or await asyncio.to_thread(_spared_by_udev, root):
        return ProbeResult(_AREA, "NetworkManager", Verdict.WORKS, "leaves linkmgr's cables alone")
    what = "runs, and would manage linkmgr's cables: nothing of its configuration excludes them"
    todo = f"{_AGAIN} 'systemctl reload NetworkManager'"
    return ProbeResult(_AREA, "NetworkManager", Verdict.MISSING, what, todo)


def _configuration(root: Path) -> str:
    """Its files in the order in which it reads them, the last word last."""
    paths = [
        path
        for top in ("usr/lib", "run")
        for path in sorted((root / top / "NetworkManager/conf.d").glob("*.conf"))
        if not (root / "etc/NetworkManager/conf.d" / path.name).exists()
    ]
    paths.append(root / "etc/NetworkManager/NetworkManager.conf")
    paths += sorted((root / "etc/NetworkManager/conf.d").glob("*.conf"))
    return "\n".join(text for _, text in _read(paths))


def _in_specs(value: str) -> bool:
    """Whether a list of devices (NetworkManager.conf(5), Device List Format) has our cables."""
    found = False
    for spec in re.split(r"[,;]", value):
        word = spec.strip()
        kind, _, pattern = word.removeprefix("except:").rpartition(":")
        glob = pattern.removeprefix("~")  # after = it is a name as it stands, and not of a cable
        matches = kind in ("", "interface-name") and fnmatchcase(EXAMPLE_DEVICE, glob)
        if matches and word.startswith("except:"):
            return False
        found = found or matches
    return found


def _spared_by_udev(root: Path) -> bool:
    rules = _files(root, "udev/rules.d", "*.rules")
    return any("linkmgr" in path.name and "NM_UNMANAGED" in text for path, text in _read(rules))


def _networkd(root: Path) -> ProbeResult:
    for path, text in _read(_files(root, "systemd/network", "*.network")):
        settings = list(_sections(text))
        match = {key: value for section, key, value in settings if section == "Match"}
        if not match or not _takes(match):
            continue
        unmanaged = any(
            section == "Link" and key == "Unmanaged" and value.lower() in ("yes", "true", "1", "on")
            for section, key, value in settings
        )
        if unmanaged:
            what = f"leaves linkmgr's cables alone ({path})"
            return ProbeResult(_AREA, "systemd-networkd", Verdict.WORKS, what)
        what = f"runs, and {path} takes linkmgr's cables"
        todo = f"{_AGAIN} 'networkctl reload'; or narrow [Match] there"
        return ProbeResult(_AREA, "systemd-networkd", Verdict.MISSING, what, todo)
    return ProbeResult(_AREA, "systemd-networkd", Verdict.WORKS, "has nothing for linkmgr's cables")


def _takes(match: dict[str, str]) -> bool:
    """Whether a [Match] may be of our cables: of a section all lines have to be."""
    for key, value in match.items():
        words = value.split()
        inverted = bool(words) and words[0].startswith("!")
        words = [word.removeprefix("!") for word in words]
        if key in ("Name", "OriginalName"):
            fits = any(fnmatchcase(EXAMPLE_DEVICE, word) for word in words)
        elif key == "Type":
            fits = any(fnmatchcase("ether", word) for word in words)
        elif key == "Kind":
            fits = any(fnmatchcase(kind, word) for kind in ("tun", "macvtap") for word in words)
        elif key == "Driver":
            fits = any(fnmatchcase(kind, word) for kind in ("tun", "macvlan") for word in words)
        elif key in ("MACAddress", "PermanentMACAddress", "Path", "Property"):
            fits = False
        else:
            continue  # of the host, not of the device
        if fits is inverted:
            return False
    return True


def _udev(root: Path) -> ProbeResult:
    rules = _files(root, "udev/rules.d", "*linkmgr*.rules")
    links = _files(root, "systemd/network", "*linkmgr*.link")
    if rules and links:
        what = "neither renames linkmgr's cables nor gives them another address"
        return ProbeResult(_AREA, "udev", Verdict.WORKS, what)
    what = "may rename a new cable or give it another address"
    return ProbeResult(_AREA, "udev", Verdict.MISSING, what, f"{_AGAIN} 'udevadm control --reload'")


def _dhcpcd(root: Path) -> ProbeResult:
    path = root / "etc/dhcpcd.conf"
    text = next((text for _, text in _read([path])), "")
    denied = allowed = None
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["interface"]:
            break  # what follows is about that one
        if words[:1] == ["denyinterfaces"]:
            denied = denied or any(fnmatchcase(EXAMPLE_DEVICE, word) for word in words[1:])
        elif words[:1] == ["allowinterfaces"]:
            allowed = allowed or any(fnmatchcase(EXAMPLE_DEVICE, word) for word in words[1:])
    if denied or allowed is False:
        return ProbeResult(
            _AREA, "dhcpcd", Verdict.WORKS, f"leaves linkmgr's cables alone ({path})"
        )
    what = "runs, and takes each macvtap: it asks for an address with the guest's MAC"
    todo = f"add 'denyinterfaces {DEVICE_PATTERNS}' to {path}, then restart dhcpcd"
    return ProbeResult(_AREA, "dhcpcd", Verdict.MISSING, what, todo)


def _connman(root: Path) -> ProbeResult:
    path = root / "etc/connman/main.conf"
    for _, text in _read([path]):
        for _, key, value in _sections(text):
            words = [word.strip() for word in value.split(",")]
            if key == "NetworkInterfaceBlacklist" and any(
                EXAMPLE_DEVICE.startswith(w) for w in words if w
            ):
                what = f"leaves linkmgr's cables alone ({path})"
                return ProbeResult(_AREA, "ConnMan", Verdict.WORKS, what)
    what = "runs, and may take linkmgr's cables"
    todo = f"add lm to NetworkInterfaceBlacklist in [General] of {path}, then restart connman"
    return ProbeResult(_AREA, "ConnMan", Verdict.MISSING, what, todo)
