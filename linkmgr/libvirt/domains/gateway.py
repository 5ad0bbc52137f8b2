"""libvirt as `DomainController` needs it, and never called while a hook of the domain waits."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from linkmgr.errors import LibvirtUnreachable
from linkmgr.libvirt.client.api_calls import DomainView
from linkmgr.libvirt.client.events import DomainEventSubscription
from linkmgr.libvirt.domains.domains import Domain

HOOK_TIMEOUT_S = 5.0  #: for which a call waits until a hook of the domain has ended


class LibvirtApi(Protocol):
    """libvirt (`linkmgr.libvirt.client.connection`). All but `events` raise `LibvirtError`."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""

    @property
    def installed(self) -> bool:
        """Whether this host has a libvirt at all, which may be stopped."""

    def events(self) -> DomainEventSubscription:
        """What happens, from now on; first `CONNECTED` if there is a connection."""

    async def domains(self) -> list[DomainView]:
        """All domains, running or not."""

    async def domain(self, which: str, /) -> DomainView:
        """One domain."""

    async def xml(self, which: str, /, *, live: bool) -> str:
        """A domain's XML: of the guest that runs, or of its next start."""

    async def network_xml(self, name: str, /) -> str | None:
        """The XML of a network of libvirt's own; ``None`` if there is none of that name."""

    async def set_metadata(
        self, which: str, uri: str, key: str, xml: str | None, /, *, live: bool, config: bool
    ) -> None:
        """Replace one element of a domain's ``<metadata>``; ``None`` removes it."""


class HookSafeLibvirt:
    """libvirt, not called about a domain while a hook of it runs.

    A hook that libvirt waits for holds the domain: a call about it would wait for the hook, and the
    hook perhaps for us. So it is not made then, and given up when a hook brings the answer.

    :param libvirt: ``None`` when the service is told to do without.
    """

    def __init__(self, libvirt: LibvirtApi | None) -> None:
        self._libvirt = libvirt

    @property
    def disabled(self) -> bool:
        """Whether the service is told to do without libvirt."""
        return self._libvirt is None

    @property
    def not_installed(self) -> bool:
        """Whether this host has no libvirt at all."""
        return self._libvirt is not None and not self._libvirt.installed

    @property
    def api(self) -> LibvirtApi:
        """The API itself, whether or not a hook waits.

        :raise LibvirtUnreachable: when the service does without.
        """
        if self._libvirt is None:
            raise LibvirtUnreachable(
                "the service is told to do without libvirt",
                hint="give it a uri in the section [libvirt] of its configuration",
            )
        return self._libvirt

    async def after_hooks(self, domain: Domain) -> LibvirtApi:
        """libvirt, when no hook of the domain waits.

        :raise LibvirtUnreachable: when one waits for too long.
        """
        api = self.api
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HOOK_TIMEOUT_S):
                while domain.running_hooks:  # noqa: ASYNC110 - a hook has no end that could be told
                    await asyncio.sleep(0.05)
        self.unless_hook(domain)
        return api

    def unless_hook(self, domain: Domain) -> LibvirtApi:
        """libvirt, if no hook of the domain waits now.

        :raise LibvirtUnreachable: when one does.
        """
        if domain.running_hooks:
            raise LibvirtUnreachable(
                f"a hook of domain {domain.name} waits, and libvirt with it", hint="try again"
            )
        return self.api

    async def live_xml(self, domain: Domain) -> str:
        """The XML of the process that runs: from its hook if that has brought it, or from libvirt.

        :raise LibvirtError: when neither gives it.
        """
        if domain.hook_xml is not None:
            return domain.hook_xml
        from_libvirt = asyncio.ensure_future(self._xml_from_libvirt(domain))
        from_hook = asyncio.ensure_future(domain.hook_xml_ready.wait())
        try:
            await asyncio.wait({from_libvirt, from_hook}, return_when=asyncio.FIRST_COMPLETED)
            if domain.hook_xml is not None:
                return domain.hook_xml
            return await from_libvirt
        finally:
            for task in (from_libvirt, from_hook):
                task.cancel()
            await asyncio.gather(from_libvirt, from_hook, return_exceptions=True)

    async def _xml_from_libvirt(self, domain: Domain) -> str:
        return await (await self.after_hooks(domain)).xml(domain.uuid, live=True)
