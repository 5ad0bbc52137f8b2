"""The monitor that dials the service, in a domain's XML.

It is a ``<channel>`` of libvirt's, so that libvirt itself writes how QEMU dials again each second:
``reconnect=1`` until QEMU 10.1, ``reconnect-ms=1000`` from QEMU 9.2 on, and no argument of ours
would fit both ends. libvirt tells AppArmor of its socket, too. Two things are ours, then: ``-mon``
makes QEMU's control monitor of the channel's chardev, ``charua-lmqmp``, and an override gives the
channel's port in the guest another one, with nothing behind it.

The port is the guest's to open. Where the channel is there and its override is lost, the guest's
root speaks to the service under QEMU's identity: such a domain is refused wherever it is met.

Until then the chardev was in qemu:commandline, with ``reconnect=1``. A QEMU of 10.2 or newer does
not start with it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

from linkmgr.errors import BadOption, CannotPrepare
from linkmgr.libvirt.xml import qemu_namespace
from linkmgr.libvirt.xml.document import Document, Edit, Element, quoted
from linkmgr.libvirt.xml.interfaces import domain_name
from linkmgr.text.untrusted import printable, shell_command

MONITOR_SOCKET = Path("/run/linkmgr/qmp.sock")  #: on which the service waits for QEMUs to dial

_ALIAS = "ua-lmqmp"
_PORT = "linkmgr"  # what the guest sees it called
_CHARDEV = f"char{_ALIAS}"  # libvirt's name for the channel's chardev
_NULL = "lm-null"
OVERRIDE = (_ALIAS, "chardev")  #: the alias and the property of the port in the guest
_ARGUMENTS = ("-chardev", f"null,id={_NULL}", "-mon", f"chardev={_CHARDEV},mode=control")
_BEFORE = "lm-qmp"  # the chardev's id in qemu:commandline, as it was once
#: The backends of a chardev with linkmgr's id. With another backend it is the domain's own.
_BACKENDS = {_NULL: ("null",), _BEFORE: ("socket", "null")}
_RECONNECT_INTERVAL_S = "1"  # from one call to the next
_RECONNECT = re.compile(r",reconnect=(\d{1,9})(?=,|\Z)")  # in whole seconds, of -chardev
_DAC = "dac"
_PATH_MAX = 107  # bytes; sun_path of unix(7) without its final NUL
_MODEL = re.compile(r"[a-z][a-z0-9_-]{0,31}")


#: What of qemu:commandline is the monitor's, in both ways to write it.
ARGUMENT_REMOVALS = (
    qemu_namespace.ArgumentRemoval(
        "-mon",
        lambda value: value in (_ARGUMENTS[3], f"chardev={_BEFORE},mode=control"),
        lambda value: _chardev_of(value) in (_CHARDEV, _BEFORE),
    ),
    qemu_namespace.ArgumentRemoval(
        "-chardev",
        lambda value: value == _ARGUMENTS[1] or value.startswith(f"socket,id={_BEFORE},path="),
        lambda value: _is_before(value) or _is_chardev(value, _NULL),
    ),
)


class MonitorForm(StrEnum):
    """How a domain's monitor is written."""

    NONE = "none"
    CHANNEL = "channel"  #: as it is written now
    COMMANDLINE = "commandline"  #: with ``reconnect=``, as it was written once
    OPEN = "open"  #: a channel whose port in the guest leads to the service: never let it dial
    DAMAGED = "damaged"  #: something of it is missing, so QEMU does not dial


@dataclass(frozen=True)
class MonitorXml:
    """What there is of it in a domain's XML.

    :param path: the socket that is dialled; empty when none is named that could be one.
    :param whole: whether nothing of it is missing, and nothing there twice.
    """

    form: MonitorForm
    path: str = ""
    whole: bool = False


def find_monitor(document: Document, models: Collection[str] | None = None) -> MonitorXml:
    """Look how a domain's monitor is written.

    :param models: of the host's security drivers, as `write`.
    """
    channels, pairs = _channels(document), list(pairwise(["", *qemu_namespace.arguments(document)]))
    old = [v for w, v in pairs if w in ("-chardev", "-mon") and _is_before(v)]
    if channels:
        path = channels[0].get("source", "path")
        if any(not _is_closed(document, each) for each in channels):
            return MonitorXml(MonitorForm.OPEN, path)
        whole = (
            len(channels) == 1
            and not old
            and all(pairs.count(pair) == 1 for pair in pairwise(_ARGUMENTS) if pair[0][0] == "-")
            and _mons(pairs) == [_ARGUMENTS[3]]
            and _is_ours(document, channels[0], models)
        )
        mon = any(_chardev_of(value) == _CHARDEV for value in _mons(pairs))
        return MonitorXml(MonitorForm.CHANNEL if mon else MonitorForm.DAMAGED, path, whole)
    if not old:
        return MonitorXml(MonitorForm.NONE)
    paths = [qemu_namespace.options(value, implied="backend").get("path", "") for value in old]
    dials = any(_chardev_of(value) == _BEFORE for value in _mons(pairs)) and any(paths)
    path = next((each for each in paths if each), "")
    return MonitorXml(MonitorForm.COMMANDLINE if dials else MonitorForm.DAMAGED, path)


def write(
    document: Document, path: Path | None = None, models: Collection[str] | None = None
) -> Document:
    """Make a domain dial. What is written so already stays as it is.

    :param path: the socket; ``None`` means the one that is there, if it can be one, else
        `MONITOR_SOCKET`.
    :param models: of the host's security drivers, in its order, which would give the socket to a
        guest's user when the guest starts, and which are told not to; ``None`` when that host is
        not known.
    :raise BadOption: the path cannot be a socket's.
    """
    found = find_monitor(document, models)
    text = _checked(path) if path else _usable(found.path) or str(MONITOR_SOCKET)
    if found.form is MonitorForm.CHANNEL and found.whole and found.path == text:
        return document
    document = remove(document)
    devices = document.root.find("devices")
    assert devices is not None  # it has NICs
    known = {_DAC} if models is None else models
    labels = sorted(_labelling(document, known, _first(models)))
    document = document.append(
        devices,
        [
            (0, "<channel type='unix'>"),
            (1, f"<source mode='connect' path={quoted(text)}>"),
            (2, f"<reconnect enabled='yes' timeout='{_RECONNECT_INTERVAL_S}'/>"),
            *((2, f"<seclabel model={quoted(each)} relabel='no'/>") for each in labels),
            (1, "</source>"),
            (1, f"<target type='virtio' name='{_PORT}'/>"),
            (1, f"<alias name='{_ALIAS}'/>"),
            (0, "</channel>"),
        ],
    )
    document = qemu_namespace.add_arguments(document, _ARGUMENTS)
    return qemu_namespace.add_overrides(document, {OVERRIDE: _NULL})


def removals(document: Document) -> list[Edit]:
    """Take out the channels; the rest of a monitor is `ARGUMENT_REMOVALS` and `OVERRIDE`."""
    return [document.removal(each) for each in _channels(document)]


def remove(document: Document) -> Document:
    """Take a domain's monitor out, whichever way it was written, and whatever is left of it."""
    return document.edited(
        *removals(document), *qemu_namespace.removals(document, ARGUMENT_REMOVALS, [OVERRIDE])
    )


def check_channel_free(document: Document) -> None:
    """Refuse a domain that has another device where the channel would be.

    :raise CannotPrepare: which device.
    """
    devices = document.root.find("devices")
    for each in devices.children if devices else []:
        if _is_channel(each):
            continue
        if each.get("alias", "name") == _ALIAS:
            raise CannotPrepare(
                f"its <{printable(each.name, 40)}> has the alias {_ALIAS}, which linkmgr needs "
                "for its monitor",
                hint="give it another alias, or none",
            ).about(domain_name(document))
        if each.name == "channel" and each.get("target", "name") == _PORT:
            raise CannotPrepare(
                f"the domain has a channel {_PORT!r} of its own, and linkmgr's is called so",
                hint="give it another name: <target name=...>",
            ).about(domain_name(document))


def check_own_chardev(document: Document, *, prepared: bool) -> None:
    """Refuse a domain that has a chardev of its own with an id of linkmgr's.

    Beside linkmgr's QEMU would not start with it, and an undo would remove it.

    :param prepared: whether a NIC is: what is left of a monitor is linkmgr's then, in the form of
        today, which has such a chardev.
    :raise CannotPrepare: there is one.
    """
    form = find_monitor(document).form
    ours = form is not MonitorForm.COMMANDLINE and (prepared or form is not MonitorForm.NONE)
    for word, value in pairwise(qemu_namespace.arguments(document)):
        name = qemu_namespace.options(value, implied="backend").get("id", "")
        if word != "-chardev" or name not in _BACKENDS:
            continue
        if not _is_chardev(value, name) or (name == _NULL and not ours):
            raise CannotPrepare(
                f"the domain's qemu:commandline has a chardev {name!r} of its own, and "
                "linkmgr's is called so",
                hint="give it another id there, and in what uses it",
            ).about(domain_name(document))


@dataclass(frozen=True)
class Leak:
    """What of a domain's devices would let its guest speak to the service.

    :param hint: what to do.
    """

    what: str
    hint: str


def in_schema_order(document: Document) -> Document:
    """Have the channel's children in the order that libvirt's schema wants.

    libvirt writes ``<seclabel>`` before ``<reconnect>``, and its own schema takes that only the
    other way round (9.0, 11.3 and 12.8).
    """
    edits = []
    for channel in _channels(document):
        source = channel.find("source")
        children = source.children if source else []
        names = [each.name for each in children]
        if "reconnect" not in names:
            continue
        last = children[names.index("reconnect")]
        labels = [each for each in children[: names.index("reconnect")] if each.name == "seclabel"]
        edits += [document.removal(each) for each in labels]
        text = b"".join(document.text(each) for each in labels)
        edits += [(last.end, last.end, text)] if labels else []
    return document.edited(*edits)


def find_leak(document: Document) -> Leak | None:
    """Look for a way from a domain's guest to the service; ``None`` if there is none."""
    found, name = find_monitor(document), domain_name(document)
    if found.form is MonitorForm.OPEN:
        return Leak(
            f"the channel {_PORT!r}, whose qemu:override is not there",
            f"'{shell_command('linkmgr prepare', name, '--refresh')}', then shut it down and start "
            "it",
        )
    edit = shell_command("virsh edit", name)
    hint = f"take it out with '{edit}', then shut the domain down and start it"
    sockets = {_plain(str(MONITOR_SOCKET)), *([_plain(found.path)] if found.path else [])}
    ours = [channel.find("source") for channel in _channels(document)]
    devices = document.root.find("devices")
    for each in devices.walk() if devices else []:
        path = each.attributes.get("path", "")
        if each.name == "source" and _plain(path) in sockets and not any(each is o for o in ours):
            return Leak(f"a device that leads to {path}", hint)
    arguments = list(pairwise(["", *qemu_namespace.arguments(document)]))
    monitors = {_chardev_of(value) for word, value in arguments if word == "-mon"}
    for word, value in arguments:
        chardev = qemu_namespace.options(value, implied="backend")
        path = chardev.get("path", "")
        if word == "-chardev" and _plain(path) in sockets and chardev.get("id") not in monitors:
            return Leak(f"a chardev that leads to {path} and is no monitor", hint)
    return None


def is_outdated(document: Document) -> bool:
    """Whether a prepared domain has a monitor, and not as it is written now."""
    return find_monitor(document).form in (
        MonitorForm.COMMANDLINE,
        MonitorForm.OPEN,
        MonitorForm.DAMAGED,
    )


def with_reconnect_ms(document: Document) -> Document:
    """Have a monitor in qemu:commandline dial again as QEMU 9.2 and newer write it.

    Not what `write` makes: saved memory needs the devices that it was saved with.
    """
    return qemu_namespace.change_arguments(document, _in_milliseconds)


def has_remains(document: Document) -> bool:
    """Whether anything is there that surely is a monitor of linkmgr's, or was one."""
    mons = _mons(list(pairwise(["", *qemu_namespace.arguments(document)])))
    return bool(mons) or find_monitor(document).form is not MonitorForm.NONE


def has_monitor(document: Document) -> bool:
    """Whether a domain's own arguments make its QEMU have a monitor besides libvirt's."""
    arguments = qemu_namespace.arguments(document)
    return any(
        word in ("-mon", "-qmp", "-qmp-pretty") or "monitor-qmp" in word for word in arguments
    )


def _plain(path: str) -> str:
    """A path as it is most often written: /var/run is /run, and nothing twice."""
    plain = "/" + posixpath.normpath(path).lstrip("/") if path else ""
    return plain.removeprefix("/var") if plain.startswith("/var/run/") else plain


def _channels(document: Document) -> list[Element]:
    devices = document.root.find("devices")
    found = devices.children if devices else []
    return [each for each in found if _is_channel(each)]


def _is_channel(device: Element) -> bool:
    """Whether it is linkmgr's channel, or what became of it."""
    if device.name != "channel" or device.attributes.get("type") != "unix":
        return False
    dials = device.find("source") and device.get("source", "mode") in ("connect", "")
    named = device.get("target", "name") == _PORT
    return bool(dials and named) or device.get("alias", "name") == _ALIAS


def _is_closed(document: Document, channel: Element) -> bool:
    """Whether what the guest writes into a channel's port goes nowhere."""
    wired = qemu_namespace.override(document, *OVERRIDE)
    pairs = pairwise(["", *qemu_namespace.arguments(document)])
    there = [value for word, value in pairs if word == "-chardev"]
    nothing = [value for value in there if value.startswith("null,")]
    return channel.get("alias", "name") == _ALIAS and any(
        qemu_namespace.options(value, implied="backend").get("id") == wired for value in nothing
    )


def _is_ours(document: Document, channel: Element, models: Collection[str] | None) -> bool:
    """Whether a channel is as `write` makes it; what libvirt adds to it is not looked at."""
    source = channel.find("source")
    labels = {
        each.attributes.get("model", ""): each.attributes.get("relabel")
        for each in (source.children if source else [])
        if each.name == "seclabel"
    }
    known = labels.keys() | {_DAC} if models is None else models
    # Of a host that is not known dac may be the first driver, or another one.
    firsts = ["", _DAC] if models is None else [_first(models)]
    return (
        channel.attributes.get("type") == "unix"
        and channel.get("source", "mode") == "connect"
        and channel.get("source/reconnect", "enabled") == "yes"
        and channel.get("source/reconnect", "timeout") == _RECONNECT_INTERVAL_S
        and any(labels == dict.fromkeys(_labelling(document, known, f), "no") for f in firsts)
        and channel.get("target", "type") == "virtio"
        and channel.get("target", "name") == _PORT
        and channel.get("alias", "name") == _ALIAS
    )


def _labelling(document: Document, models: Collection[str], first: str) -> set[str]:
    """The security drivers that would label the socket.

    Not AppArmor, which has rules instead; nor one that is told to label nothing of this domain, of
    which libvirt refuses to be told that it labels not this file.

    :param first: the host's first driver, of which a label without a model is; empty where that is
        not known: such a label keeps no driver from the socket then.
    """
    found = {each for each in models if each not in ("apparmor", "none") and _MODEL.fullmatch(each)}
    for each in document.root.children:
        if each.name == "seclabel":
            by_default = "no" if each.attributes.get("type") in ("none", "static") else "yes"
            if each.attributes.get("relabel", by_default) == "no":
                found.discard(each.attributes.get("model") or first)
    return found


def _first(models: Collection[str] | None) -> str:
    """The first of a host's security drivers; empty where that is not known."""
    return next(iter(models or ()), "")


def _mons(pairs: Collection[tuple[str, str]]) -> list[str]:
    """The values of ``-mon`` that are ours."""
    return [v for word, v in pairs if word == "-mon" and _chardev_of(v) in (_CHARDEV, _BEFORE)]


def _chardev_of(mon: str) -> str | None:
    return qemu_namespace.options(mon, implied="chardev").get("chardev")


def _in_milliseconds(value: str) -> str:
    if qemu_namespace.options(value, implied="backend").get("id") != _BEFORE:
        return value
    return _RECONNECT.sub(r",reconnect-ms=\g<1>000", value)


def _is_before(value: str) -> bool:
    """Whether a value of ``-chardev`` or ``-mon`` is of the monitor as it was written once."""
    return _is_chardev(value, _BEFORE) or _chardev_of(value) == _BEFORE


def _is_chardev(value: str, name: str) -> bool:
    """Whether a value of ``-chardev`` makes linkmgr's of that id."""
    chardev = qemu_namespace.options(value, implied="backend")
    return chardev.get("id") == name and chardev.get("backend") in _BACKENDS[name]


def _checked(path: Path) -> str:
    text = str(path)
    if not _usable(text):
        raise BadOption(
            f"{ascii(text)[:43]} cannot be the socket that QEMU dials",
            hint=f"give an absolute path of at most {_PATH_MAX} bytes",
        )
    return text


def _usable(path: str) -> str:
    """A path, if it can be a socket's; else empty."""
    fits = len(path.encode(errors="replace")) <= _PATH_MAX and path.isprintable()
    return path if path.startswith("/") and fits else ""
