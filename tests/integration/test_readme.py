"""What the README shows works as it stands."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from linkmgr.testing.process import execute
from tests.integration.lab import Lab

ROOT = Path(__file__).parents[2]


async def test_the_program_of_the_readme_runs_on_a_guest(lab: Lab) -> None:
    await lab.sh("ip link add eth1 type veth peer name eth2")
    guest = await lab.guest(boot=False, add=False)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (program,) = (block for block in blocks if "LinkManager" in block)
    program = program.replace("/run/web1.qmp", str(guest.qmp_path))
    result = await execute([sys.executable, "-W", "error", "-c", program], timeout=60)
    assert result.output == ""
    await lab.sh("ip link del eth1")
    assert not Path("/sys/class/net/br0").exists()


@pytest.mark.timeout(180)
async def test_the_demo_tells_its_story_and_writes_its_report(tmp_path: Path) -> None:
    environment = [f"{name}={os.environ[name]}" for name in ("LINKMGR_QEMU",) if name in os.environ]
    (tmp_path / "build").mkdir()
    command = (
        f"cd {tmp_path} && env {' '.join(environment)} {sys.executable} {ROOT}/examples/demo.py"
    )
    result = await execute(["sh", "-c", command], timeout=150)
    report = json.loads((tmp_path / "build" / "demo.json").read_text())
    assert report["ok"], report
    assert report["seconds"] < 60
    assert all({"name", "ms", "result"} <= step.keys() for step in report["steps"])
    swap = next(step for step in report["steps"] if step["name"].startswith("swap"))
    assert swap["lost"] < swap["sent"]
    assert "unplugged" in result.output
