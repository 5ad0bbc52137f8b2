"""The kernel's abilities are tried for real, and the host does not notice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from linkmgr.testing.process import execute

TRIAL = [sys.executable, "-m", "linkmgr.doctor.kernel_trial"]


def seen() -> tuple[set[str], str, str]:
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    return links, Path("/proc/self/mounts").read_text(), Path("/proc/net/dev").read_text()[:200]


async def test_what_the_tests_of_this_host_use_works_and_nothing_is_left() -> None:
    before = seen()
    found = json.loads((await execute(TRIAL)).output)["tried"]
    works = {each["name"]: each["works"] for each in found}
    assert [works[name] for name in ("tap", "bridge", "macvtap", "veth")] == [True] * 4
    assert all(each["works"] or each["detail"] for each in found)
    assert seen() == before


async def test_what_is_tried_agrees_with_the_kernel_when_asked_by_ip() -> None:
    works: dict[str, Any] = {
        each["name"]: each["works"] for each in json.loads((await execute(TRIAL)).output)["tried"]
    }
    for name, command in {
        "vlan filtering": "ip link add c0 type bridge vlan_filtering 1",
        "vxlan": "ip link add c0 type vxlan id 5 dstport 4789",
        "bonding": "ip link add c0 type bond",
        "mirred": "ip link add c0 type veth peer name c1 && tc qdisc add dev c0 ingress"
        " && tc filter add dev c0 parent ffff: protocol all u32 match u32 0 0"
        " action mirred egress redirect dev c1",
    }.items():
        done = await execute(["sh", "-c", command], check=False)
        await execute(["ip", "link", "del", "c0"], check=False)
        assert works[name] is (done.status == 0), (name, done.output)


async def test_without_the_right_nothing_is_tried() -> None:
    argv = ["setpriv", "--bounding-set=-sys_admin", *TRIAL]
    assert json.loads((await execute(argv)).output)["denied"] is True
