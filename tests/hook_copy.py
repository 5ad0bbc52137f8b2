"""libvirt's hook with paths of a test's own, as packaging/install.sh puts in those of a prefix."""

from __future__ import annotations

from pathlib import Path

HOOK = Path(__file__).parents[1] / "hooks" / "qemu"


def write_hook(
    path: Path,
    *,
    socket: str | Path | None = None,
    config: str | Path | None = None,
    program: str | Path | None = None,
) -> Path:
    """Write the hook to `path`, executable.

    :param socket: that it connects to, instead of the usual one.
    :param config: the configuration that it reads.
    :param program: without which it takes linkmgr for removed.
    """
    text = HOOK.read_text()
    usual = {
        "/run/linkmgr/linkmgr.sock": socket,
        "/etc/linkmgr/linkmgr.toml": config,
        "/usr/bin/linkmgr": program,
    }
    for old, new in usual.items():
        assert text.count(f'"{old}"') == 1, old
        if new is not None:
            text = text.replace(f'"{old}"', f'"{new}"')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
