"""libvirt's guests in the service: the connection, the controller, and links that agree."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from linkmgr.libvirt.client.connection import Libvirt
from linkmgr.libvirt.domains.controller import DomainController
from linkmgr.libvirt.domains.link_sync import LinkSync
from linkmgr.manager.manager import LinkManager
from linkmgr.service.config.schema import LibvirtSection


@asynccontextmanager
async def connection(settings: LibvirtSection) -> AsyncIterator[Libvirt | None]:
    """libvirt, which is connected to in the background; ``None`` if the service does without."""
    if not settings.uri:
        yield None
        return
    run_dir = Path(settings.run_dir) if settings.run_dir else None
    libvirt = Libvirt(settings.uri, run_dir=run_dir)
    async with _running(libvirt.run(), "libvirt"):
        yield libvirt


@asynccontextmanager
async def domain_controller(
    manager: LinkManager, libvirt: Libvirt | None, settings: LibvirtSection
) -> AsyncIterator[DomainController]:
    """The controller of libvirt's domains, and the synchronization of their links."""
    async with contextlib.AsyncExitStack() as stack:
        controller = await stack.enter_async_context(DomainController(manager, libvirt))
        if settings.run_dir:
            sync = LinkSync(
                Path(settings.run_dir),
                manager,
                set_link=libvirt.set_link if libvirt else None,
                # Its live metadata says so too, or it would end with a managedsave.
                apply_link=controller.verbs.set_link,
            )
            await stack.enter_async_context(_running(sync.run(), "link sync"))
        yield controller


@asynccontextmanager
async def _running(coroutine: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Have it run meanwhile. It ends by itself only by a fault, which is logged by asyncio."""
    task = asyncio.create_task(coroutine, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
