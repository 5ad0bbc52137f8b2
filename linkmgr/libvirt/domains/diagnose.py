"""What libvirt has of a name that linkmgr does not know: a guest, or a network of its own."""

from __future__ import annotations

import asyncio
import re

from linkmgr.errors import BadMetadata, LibvirtRefused, LinkmgrError, UnknownNetwork, UnknownVm
from linkmgr.libvirt.client.api_calls import DomainView
from linkmgr.libvirt.domains.domains import KnownDomains
from linkmgr.libvirt.domains.gateway import HookSafeLibvirt, LibvirtApi
from linkmgr.libvirt.xml.desired_cables import read_document
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.prepared_element import prepared_nics_of
from linkmgr.model import DirectMode
from linkmgr.text.suggest import did_you_mean
from linkmgr.text.untrusted import shell_command, shell_word

_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")  # no other is put into a command
EXPLAIN_TIMEOUT_S = 2.0  #: seconds for which libvirt is asked; the verb has failed already


async def explain_unknown_vm(
    error: UnknownVm, name: str, domains: KnownDomains, gateway: HookSafeLibvirt
) -> UnknownVm:
    """Explain an unknown VM by what its domain lacks.

    :return: the error itself when libvirt has no such domain, is not there, or does not say in
        time.
    """
    domain = domains.by_name(name)
    if domain is not None and domain.running_hooks:  # libvirt would wait for the hook
        return error
    try:
        async with asyncio.timeout(EXPLAIN_TIMEOUT_S):
            api = gateway.api
            view = await api.domain(name)
            if view.name == name:  # and was not asked for by its uuid
                try:
                    return await _of(view, api)
                except (BadMetadata, LibvirtRefused) as unreadable:
                    return _unreadable(view, unreadable)
    except (LinkmgrError, TimeoutError):
        pass
    if said := did_you_mean(name, [each.name for each in domains if each.applied_state]):
        error.hint = said
    return error


async def explain_unknown_network(
    error: UnknownNetwork, name: str, gateway: HookSafeLibvirt
) -> UnknownNetwork:
    """Explain an unknown network by libvirt's own of that name, and how to use it.

    :return: the error itself when libvirt has none, is not there, or does not say in time.
    """
    try:
        async with asyncio.timeout(EXPLAIN_TIMEOUT_S):
            text = await gateway.api.network_xml(name)
        return error if text is None else _of_network(name, read_document(text, name))
    except (LinkmgrError, TimeoutError):
        return error


def _of_network(name: str, document: Document) -> UnknownNetwork:
    forward, bridge = document.root.find("forward"), document.root.find("bridge")
    mode = forward.attributes.get("mode", "nat") if forward else "isolated"
    device = bridge.attributes.get("name", "") if bridge else ""
    parent = forward.attributes.get("dev", "") if forward else ""
    create = f"linkmgr network create {shell_word(name)}"
    if _DEVICE.fullmatch(device):
        kind, hint = (
            f"{mode}, bridge {device}",
            f"run '{create} bridge bridge={shell_word(device)}'",
        )
    elif _DEVICE.fullmatch(parent) and mode in set(DirectMode):
        kind = f"{mode}, on {parent}"
        hint = f"run '{create} direct parent={shell_word(parent)} mode={mode}'"
    else:
        kind, hint = (
            mode,
            f"see '{shell_command('virsh net-dumpxml', name)}'; linkmgr has bridge and direct",
        )
    return UnknownNetwork(
        f"{name} is a network of libvirt's own ({kind}), and linkmgr has none of that name",
        hint=f"{hint}, then plug again" if hint.startswith("run") else hint,
    )


async def _of(view: DomainView, api: LibvirtApi) -> UnknownVm:
    name = view.name
    prepare = f"run '{shell_command('linkmgr prepare', name, '--define')}'"
    if not view.persistent:
        prepare = "prepare the file that it is created from ('linkmgr prepare --xml FILE.xml')"
    stored = await _prepared(view, api, live=False)
    if not view.active:
        if stored:
            start = shell_command("virsh start", name)
            hint = f"start it ('{start}'), or use --config, for its next start"
            return UnknownVm(f"domain {name} is {view.state}", hint=hint)
        what = f"domain {name} is {view.state}, and was never prepared"
        return UnknownVm(what, hint=f"{prepare}, then start it")
    if await _prepared(view, api, live=True):
        return UnknownVm(
            f"domain {name} runs and is prepared, but its QEMU has not dialled",
            hint="try again if it has just been started; else 'linkmgr check' says what to look at",
        )
    again = "shut it down and start it again"
    if stored:
        what = f"domain {name} was started before it was prepared, so its cables cannot change"
        return UnknownVm(what, hint=again)
    what = f"domain {name} was never prepared, so its cables cannot change"
    return UnknownVm(what, hint=f"{prepare}, then {again}")


def _unreadable(view: DomainView, error: BadMetadata | LibvirtRefused) -> UnknownVm:
    """Say of a domain that its XML is the reason; libvirt refuses one that is too long for it.

    :raise LibvirtRefused: the domain has gone.
    """
    if isinstance(error, LibvirtRefused) and error.no_domain:
        raise error
    why = error.what.replace(view.uuid, view.name)
    edit = shell_command("virsh edit", view.name)
    return UnknownVm(
        f"domain {view.name} is {view.state}, and its XML cannot be read: {why}",
        hint=error.hint or f"look at it with '{edit}'",
    )


async def _prepared(view: DomainView, api: LibvirtApi, *, live: bool) -> bool:
    return bool(prepared_nics_of(read_document(await api.xml(view.uuid, live=live), view.name)))
