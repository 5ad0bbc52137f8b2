"""What libvirt itself writes of the channel that `prepare` adds, held against its own schema."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

DOMAIN = """
<domain type='test'><name>web1</name><memory>65536</memory><os><type>hvm</type></os><devices>
<channel type='unix'>
<source mode='connect' path='/run/linkmgr/qmp.sock'>
<reconnect enabled='yes' timeout='1'/><seclabel model='dac' relabel='no'/></source>
<target type='virtio' name='linkmgr'/><alias name='ua-lmqmp'/></channel>
</devices></domain>
"""


async def run(*words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


@pytest.mark.newer_debian
async def test_libvirt_writes_the_channel_in_an_order_that_only_its_schema_refuses(
    tmp_path: Path,
) -> None:
    """docs/libvirt.md says so, and what to answer; when this fails, it need not any more."""
    ours, dumped = tmp_path / "ours.xml", tmp_path / "dumped.xml"
    ours.write_text(DOMAIN)
    assert (await run("virt-xml-validate", str(ours), "domain"))[0] == 0
    virsh = ("virsh", "-q", "-c", "test:///default")
    status, text = await run(*virsh, f"define {ours}; dumpxml web1 --inactive")
    assert status == 0, text
    assert text.index("<seclabel model='dac' relabel='no'/>") < text.index("<reconnect ")
    dumped.write_text(text)
    assert (await run("virt-xml-validate", str(dumped), "domain"))[0] != 0
    status, said = await run(*virsh, f"define {dumped} --validate")
    assert status != 0
    assert "failed to validate against schema" in said
    status, text = await run(*virsh, f"define {dumped}; dumpxml web1 --inactive")
    assert status == 0, text
    assert "<reconnect enabled='yes' timeout='1'/>" in text
    assert "<seclabel model='dac' relabel='no'/>" in text
