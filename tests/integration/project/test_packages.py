"""The package of each distribution, in a machine of that distribution with its systemd and libvirt.

``make test-debs`` runs it for all of them (LINKMGR_SUITES names them); without it, one other Debian
than this machine's is tried, and only what needs no more than the root of its tests.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from linkmgr.testing.guest import KERNEL_CMDLINE, MEMORY_MIB, images
from tests.integration.machine import CHECKOUT, Machine, boot
from tests.integration.machine import suite as suite_here
from tests.integration.project.test_deb import EVERYTHING, new
from tests.integration.readme import blocks_of

BUILD = CHECKOUT / "build"


NAMED = os.environ.get("LINKMGR_SUITES", "").split()
SUITES = NAMED or [suite_here("other")]
#: An older linkmgr, from which is upgraded: the last one with the first formats of its state.
BEFORE = "e39dc5c"
#: What the root of the tests forbids, for its own making: services, and documents of packages.
NOT_ON_A_HOST = "/usr/sbin/policy-rc.d /etc/dpkg/dpkg.cfg.d/tests"
HOOK = "/etc/libvirt/hooks/qemu.d/50-linkmgr"
PING_INTERVAL_S = 0.05
WAIT_FOR_GUEST = (
    "for try in $(seq 120); do ping -q -c 1 -W 1 {address} >/dev/null && exit; done; exit 1"
)

pytestmark = pytest.mark.parametrize("suite", SUITES)
everywhere = pytest.mark.skipif(not NAMED, reason="needs the roots of make test-debs")


def package(suite: str, of: str = "") -> Path:
    """The package that was built in the root of a Debian; ``of``: an older linkmgr's."""
    found = list((BUILD / "packages" / suite / of).glob("linkmgr_*.deb"))
    if not found:
        why = f"no package {of} of {suite} is built: make test-debs, in a whole clone"
        if NAMED:  # by make test-debs, which has to try all of them
            pytest.fail(why)
        pytest.skip(why)
    return found[0]


@asynccontextmanager
async def host(folder: Path, suite: str, *, libvirt: bool) -> AsyncIterator[Machine]:
    """A machine of that Debian with QEMU, perhaps with libvirt's units, and the guest's images."""
    layers = [BUILD / f"{suite}-host/upper"] if libvirt else []
    tests = BUILD / f"{suite}-tests/upper"
    async with boot(folder, *layers, tests, root=BUILD / suite) as machine:
        for name in ("vmlinuz", "initramfs.gz"):
            shutil.copy(images() / name, machine.shared)
        await machine.run(f"rm -f {NOT_ON_A_HOST}")
        yield machine


@pytest.mark.timeout(240)
async def test_a_guest_stays_on_its_cable_through_the_life_of_the_package(
    tmp_path: Path, suite: str
) -> None:
    async with host(tmp_path, suite, libvirt=False) as machine:
        shutil.copy(package(suite, BEFORE), machine.shared / "before.deb")
        shutil.copy(package(suite), machine.shared / "linkmgr.deb")
        before = await machine.says(EVERYTHING)

        await machine.run("dpkg -i /shared/before.deb", timeout=90)
        await machine.run(f"{_BRIDGES}\n{_GUEST}", timeout=60)
        await machine.run("linkmgr plug web1/net0 blue")
        await machine.run(WAIT_FOR_GUEST.format(address="10.0.0.2"), timeout=120)
        device = await machine.says("ls /sys/class/net/br0/brif")

        await machine.run(_UPGRADE, timeout=90)
        said = await machine.says("cat /run/ping.log /run/dpkg.log")
        answered = {int(number) for number in re.findall(r"icmp_seq=(\d+)", said)}
        assert answered == set(range(1, max(answered) + 1)), f"a frame was lost: {said}"
        assert "warning" not in said, said
        assert "not starting it" not in said, said
        assert await machine.says("ls /sys/class/net/br0/brif") == device
        version = await machine.says("dpkg-query -W -f '${Version}' linkmgr")
        assert version.startswith("0.1.0-1"), version
        units = "linkmgr linkmgr.socket linkmgr-admin.socket linkmgr-fd.socket linkmgr-qmp.socket"
        assert (await machine.says(f"systemctl is-active {units}")).split() == ["active"] * 5
        assert (await machine.says(f"systemctl is-enabled {units}")).split() == ["enabled"] * 5
        assert "plugged into blue" in await machine.says("linkmgr status")
        asked = await machine.run(f"echo '{_STARTED}' | {HOOK} x started begin - 2>&1")
        assert asked.output == ""

        await machine.run("ip addr del 10.0.0.1/24 dev br0; ip addr add 10.0.0.1/24 dev br1")
        await machine.run("linkmgr plug web1/net0 green")
        await machine.run(WAIT_FOR_GUEST.format(address="10.0.0.2"), timeout=60)
        await machine.run("linkmgr check")
        await machine.run("dpkg -r linkmgr", timeout=60)
        await machine.run("ping -q -c 3 -i 0.2 10.0.0.2")  # QEMU has fds of its own
        await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)
        assert "plugged into green" in await machine.says("linkmgr status")
        await machine.run(
            "linkmgr unplug web1/net0 &&  linkmgr vm remove web1 && echo quit >/run/web1.in"
        )
        await machine.run("ip link del br0 && ip link del br1 && rm /run/web1.*")
        assert "lm" not in await machine.says("ls /sys/class/net")
        assert (await machine.says("systemctl --failed --no-legend")) == ""
        await machine.run("dpkg -P linkmgr", timeout=60)
        assert new(before, await machine.says(EVERYTHING)) == []


_STARTED = "<domain><name>x</name><uuid>6f1c9e1e-0f0e-4a52-9a5c-5f1f6f7f8f9f</uuid></domain>"
_BRIDGES = """
set -e
ip link add br0 up type bridge && ip addr add 10.0.0.1/24 dev br0
ip link add br1 up type bridge
linkmgr network create blue bridge bridge=br0
linkmgr network create green bridge bridge=br1
"""
_GUEST = f"""
mkfifo /run/web1.in /run/web1.out
qemu-system-x86_64 -S -daemonize -display none -nodefaults -accel tcg -m {MEMORY_MIB} \
    -kernel /shared/vmlinuz -initrd /shared/initramfs.gz \
    -append "{KERNEL_CMDLINE} lm.ip.eth0=10.0.0.2/24" -monitor pipe:/run/web1 \
    -qmp unix:/run/web1.qmp,server=on,wait=off $(linkmgr args web1/net0)
linkmgr vm add web1 /run/web1.qmp
echo cont >/run/web1.in
"""


#: While frames go over the cable.
_UPGRADE = f"""
dpkg -i /shared/linkmgr.deb >/run/dpkg.log 2>&1 & dpkg=$!
ping -i {PING_INTERVAL_S} 10.0.0.2 >/run/ping.log & ping=$!
wait $dpkg; status=$?
kill -INT $ping; wait $ping
exit $status
"""


@everywhere
@pytest.mark.timeout(300)
async def test_lintian_of_that_distribution_finds_no_error(tmp_path: Path, suite: str) -> None:
    async with host(tmp_path, suite, libvirt=True) as machine:
        shutil.copy(package(suite), machine.shared)
        done = await machine.run(
            "lintian --fail-on error /shared/linkmgr_*.deb 2>&1", check=False, timeout=240
        )
    assert done.status == 0, done.output
    assert not [line for line in done.output.splitlines() if line.startswith("E:")]


@everywhere
@pytest.mark.timeout(300)
async def test_the_readmes_part_about_libvirt_works_as_it_is_typed_in(
    tmp_path: Path, suite: str
) -> None:
    _, _, install, doctor = blocks_of("Install")
    commands = blocks_of("With libvirt")
    async with host(tmp_path, suite, libvirt=True) as machine:
        (machine.shared / "build").mkdir()
        shutil.copy(package(suite), machine.shared / "build")
        (machine.shared / "web1.xml").write_text(_DOMAIN)
        await machine.run(f"cd /shared && {install}", timeout=120)
        await machine.run("systemctl start libvirtd && virsh net-start default", timeout=60)
        await machine.run("virsh define --validate /shared/web1.xml", timeout=60)
        for command in commands:
            done = await machine.run(f"{command} 2>&1", timeout=60)
            assert "Traceback" not in done.output
        await machine.run(WAIT_FOR_GUEST.format(address="192.168.122.2"), timeout=120)
        assert "web1/ua-net0  plugged into blue" in await machine.says("linkmgr status")
        said = (await machine.run(doctor, check=False, timeout=60)).output
        assert f"{HOOK}, as in this version" in said

        # The cable is in the domain's own XML: the next start brings it back.
        await machine.run("virsh destroy web1 && virsh start web1", timeout=60)
        await machine.run(WAIT_FOR_GUEST.format(address="192.168.122.2"), timeout=120)
        assert "web1/ua-net0  plugged into blue" in await machine.says("linkmgr status")
        await machine.run("virsh destroy web1", timeout=60)


_DOMAIN = f"""\
<domain type='qemu'>
  <name>web1</name>
  <memory unit='MiB'>{MEMORY_MIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/shared/vmlinuz</kernel>
    <initrd>/shared/initramfs.gz</initrd>
    <cmdline>{KERNEL_CMDLINE} lm.ip.eth0=192.168.122.2/24</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <interface type='network'><source network='default'/><model type='virtio'/></interface>
    <memballoon model='none'/>
  </devices>
</domain>
"""
