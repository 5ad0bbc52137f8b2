"""Domains as linkmgr prepared them before the monitor was a channel of libvirt's."""

from __future__ import annotations

import re

from linkmgr.libvirt.prepare.rewrite import prepare
from linkmgr.libvirt.xml import monitor
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.qemu_namespace import add_arguments

DIAL = "socket,id=lm-qmp,path=/run/linkmgr/qmp.sock,server=off,reconnect=1"


def prepared_once(xml: str) -> str:
    """A domain with its monitor in qemu:commandline."""
    document = monitor.remove(Document(prepare(xml.encode()).xml))
    args = ["-chardev", DIAL, "-mon", "chardev=lm-qmp,mode=control"]
    return add_arguments(document, args).source.decode()


def prepared_open(xml: str) -> str:
    """A prepared domain that has lost what keeps its guest from the channel, and its monitor."""
    made = prepare(xml.encode()).xml
    device = re.search(rb"\s*<qemu:device alias='ua-lmqmp'>.*?</qemu:device>", made, re.DOTALL)
    assert device is not None
    made = made.replace(device[0], b"")
    for value in (b"-mon", b"chardev=charua-lmqmp,mode=control"):
        made = made.replace(b"<qemu:arg value='" + value + b"'/>", b"")
    return made.decode()
