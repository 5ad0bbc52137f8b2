"""Doctor looks at the host's other network managers: who would take linkmgr's cables."""

from __future__ import annotations

import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from linkmgr import doctor
from linkmgr.doctor import ProbeResult, Verdict
from linkmgr.doctor.managers import DEVICE_PATTERNS, EXAMPLE_DEVICE
from linkmgr.host.names import device_name, new_id
from linkmgr.host.netlink.link import DEVICE_GROUP
from linkmgr.libvirt.prepare.interface import _OUR_DEVICE

PACKAGED = Path(__file__).parents[3] / "packaging/managers"
ALL = "[Match]\nName=*\n[Network]\nDHCP=yes\n"


def host(root: Path, *running: str) -> Path:
    for number, name in enumerate(running, 1):
        (root / f"proc/{number}").mkdir(parents=True)
        (root / f"proc/{number}/comm").write_text(f"{name}\n")
    return root


def put(root: Path, path: str, text: str | Path) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text if isinstance(text, str) else text.read_text())


async def look(root: Path) -> dict[str, ProbeResult]:
    return {line.name: line for line in await doctor.managers(root)}


def test_the_patterns_are_those_of_the_devices_that_linkmgr_makes() -> None:
    names = [EXAMPLE_DEVICE, device_name("lm", new_id()), "lmn0123456789"]
    assert _OUR_DEVICE.fullmatch(names[-1])
    patterns = DEVICE_PATTERNS.split()
    assert all(any(fnmatchcase(name, each) for each in patterns) for name in names)
    assert not any(fnmatchcase(name, each) for each in patterns for name in ("lmgmt0", "lm0", "lo"))
    for file in PACKAGED.iterdir():
        text = file.read_text()
        if "Property" not in text:
            assert all(each in text for each in patterns), file.name
    assert f'ATTR{{netdev_group}}=="{DEVICE_GROUP}"' in (PACKAGED / "udev.rules").read_text()


async def test_what_does_not_run_is_not_spoken_of(tmp_path: Path) -> None:
    put(tmp_path, "etc/systemd/network/20-all.network", ALL)
    assert await look(host(tmp_path, "bash", "sshd")) == {}


async def test_each_manager_takes_the_cables_until_its_drop_in_is_there(tmp_path: Path) -> None:
    names = ["NetworkManager", "systemd-network", "systemd-udevd", "dhcpcd", "connmand"]
    root = host(tmp_path, *names)
    put(root, "etc/systemd/network/20-all.network", ALL)
    found = await look(root)
    assert set(found) == {"NetworkManager", "systemd-networkd", "udev", "dhcpcd", "ConnMan"}
    assert {line.verdict for line in found.values()} == {Verdict.MISSING}
    assert not any(line.bad for line in found.values()), "linkmgr is of use all the same"
    assert all(line.todo for line in found.values())
    assert "20-all.network" in found["systemd-networkd"].what

    lib = "usr/lib/systemd/network"
    put(root, "usr/lib/NetworkManager/conf.d/90-linkmgr.conf", PACKAGED / "NetworkManager.conf")
    put(root, f"{lib}/05-linkmgr.network", PACKAGED / "networkd.network")
    put(root, f"{lib}/05-linkmgr-renamed.network", PACKAGED / "networkd-renamed.network")
    put(root, f"{lib}/05-linkmgr.link", PACKAGED / "udev.link")
    put(root, "usr/lib/udev/rules.d/70-linkmgr.rules", PACKAGED / "udev.rules")
    put(root, "etc/dhcpcd.conf", PACKAGED / "dhcpcd.conf")
    put(root, "etc/connman/main.conf", "[General]\nNetworkInterfaceBlacklist=vnet,lm\n")
    found = await look(root)
    assert {line.verdict for line in found.values()} == {Verdict.WORKS}, found


@pytest.mark.parametrize(
    ("value", "spared"),
    [
        ("unmanaged-devices=*", True),
        ("unmanaged-devices=*,except:type:wifi", True),
        ("unmanaged-devices=*;except:interface-name:lm*", False),
        ("unmanaged-devices=interface-name:eth0;interface-name:lm*", True),
        ("unmanaged-devices=interface-name:=lm????????", False),
        ("unmanaged-devices=mac:52:54:00:00:00:01;interface-name:eth*", False),
        ("#unmanaged-devices=*", False),
    ],
)
async def test_networkmanagers_own_list_counts(tmp_path: Path, value: str, spared: bool) -> None:
    put(tmp_path, "etc/NetworkManager/NetworkManager.conf", f"[keyfile]\n{value}\n")
    (line,) = (await look(host(tmp_path, "NetworkManager"))).values()
    assert (line.verdict is Verdict.WORKS) is spared


async def test_a_list_in_etc_overrides_the_packages_unless_it_adds(tmp_path: Path) -> None:
    root = host(tmp_path, "NetworkManager")
    put(root, "usr/lib/NetworkManager/conf.d/90-linkmgr.conf", PACKAGED / "NetworkManager.conf")
    own = "etc/NetworkManager/conf.d/10-own.conf"
    for sign, verdict in (("=", Verdict.MISSING), ("+=", Verdict.WORKS)):
        put(root, own, f"[keyfile]\nunmanaged-devices{sign}interface-name:eth9\n")
        assert (await look(root))["NetworkManager"].verdict is verdict
    put(root, own, "[keyfile]\nunmanaged-devices=interface-name:eth9\n")
    put(root, "usr/lib/udev/rules.d/70-linkmgr.rules", PACKAGED / "udev.rules")
    assert (await look(root))["NetworkManager"].verdict is Verdict.WORKS


@pytest.mark.parametrize(
    ("match", "takes"),
    [
        ("Name=*", True),
        ("Name=en* lm*", True),
        ("Name=en*", False),
        ("Name=!en*", True),
        ("Name=!lm*", False),
        ("Type=ether", True),
        ("Type=wlan", False),
        ("Kind=tun", True),
        ("Driver=virtio_net", False),
        ("MACAddress=52:54:00:12:34:56", False),
        ("Type=ether\nName=en*", False),
        ("Name=*\nHost=myhost", True),
    ],
)
async def test_the_first_file_that_fits_is_networkds(
    tmp_path: Path, match: str, takes: bool
) -> None:
    root = host(tmp_path, "systemd-network")
    put(root, "etc/systemd/network/20-x.network", f"[Match]\n{match}\n[Network]\nDHCP=yes\n")
    (line,) = (await look(root)).values()
    assert (line.verdict is Verdict.MISSING) is takes
    put(root, "usr/lib/systemd/network/05-linkmgr.network", PACKAGED / "networkd.network")
    assert (await look(root))["systemd-networkd"].verdict is Verdict.WORKS
    shutil.copy(
        root / "etc/systemd/network/20-x.network", root / "etc/systemd/network/00-x.network"
    )
    (line,) = (await look(root)).values()
    assert (line.verdict is Verdict.MISSING) is takes


@pytest.mark.parametrize(
    ("text", "spared"),
    [
        ("denyinterfaces eth9 lm*", True),
        ("denyinterfaces eth9", False),
        ("allowinterfaces eth0 eth1", True),
        ("allowinterfaces *", False),
        ("interface eth0\ndenyinterfaces lm*", False),
        ("# denyinterfaces lm*", False),
    ],
)
async def test_dhcpcds_own_words_count(tmp_path: Path, text: str, spared: bool) -> None:
    root = host(tmp_path, "dhcpcd")
    put(root, "etc/dhcpcd.conf", f"hostname\n{text}\n")
    (line,) = (await look(root)).values()
    assert (line.verdict is Verdict.WORKS) is spared
    if not spared:
        (words,) = re.findall(r"add '(.*)' to", line.todo or "")
        put(root, "etc/dhcpcd.conf", f"{words}\n{text}\n")
        assert (await look(root))["dhcpcd"].verdict is Verdict.WORKS
