"""Everything that linkmgr raises.

One tree, so that a caller can catch as much or as little as it wants::

    LinkmgrError
    ├── BadRequest                 the call itself is wrong; nothing was tried
    │   ├── BadName                    a name that cannot be a name
    │   ├── AmbiguousNic               a name that several NICs have
    │   ├── BadOption                  an option that is unknown or has a wrong value
    │   ├── BadConfig                  the configuration file; says on which line
    │   ├── BadFd                      an fd that is no tap or macvtap which a NIC can use
    │   ├── CannotPrepare              a domain of libvirt whose NICs cannot be put on hubs
    │   └── BadMetadata                the cables that a domain's XML asks for cannot be read
    ├── Forbidden                  the caller may not do this; nothing was tried
    ├── NotFound                   what was named does not exist
    │   ├── UnknownVm
    │   ├── UnknownNic
    │   ├── UnknownNetwork
    │   └── UnknownPort
    ├── Conflict                   it exists, but is not free
    │   ├── AlreadyExists              the same name with other properties
    │   ├── NetworkInUse
    │   ├── PortInUse
    │   ├── MacInUse                   two NICs with one address on one network
    │   ├── ReadOnly                   it is described by the configuration file
    │   └── BeingRemoved               the VM is on its way out; what waited for it was not begun
    ├── CannotAttach               this NIC and this network do not go together
    │   ├── NoCommonEndpoint           no endpoint kind that both sides know
    │   ├── MtuTooLarge
    │   ├── NotOnHub                   the NIC's backend is fixed; boot it otherwise
    │   ├── NoSink                     the hub lacks its sink port
    │   ├── HubCrowded                 the hub carries what it must not carry
    │   └── UnusableNicId              QEMU knows the NIC by no id, or by one that cannot be a name
    ├── HostError                  the kernel of this host refused
    │   ├── LinkMissing
    │   ├── LinkBusy                   taken, in the wrong mode, or a port of something else
    │   ├── NameTaken
    │   ├── Denied                     a privilege is missing
    │   ├── Unsupported                this kernel has no such thing
    │   └── NotForwarding              a bridge port that did not reach forwarding in time
    ├── Stopping                   linkmgr ends; what waited for its turn was not begun
    ├── StateError                 linkmgr's own state directory; nothing was changed
    ├── MonitorError               QEMU, seen through its monitor
    │   ├── MonitorUnreachable         no connection could be made
    │   ├── MonitorTooOld              this QEMU lacks what linkmgr needs
    │   ├── MonitorGone                the connection ended before the answer
    │   ├── MonitorTimeout             no answer in time: it may or may not have been done
    │   ├── CommandFailed              QEMU answered with an error
    │   └── SwitchFailed               the switch went wrong and was undone
    ├── LibvirtError               libvirt's daemon
    │   ├── LibvirtUnreachable         no connection to it now, or no answer in time
    │   └── LibvirtRefused             it answered with an error
    ├── ServiceUnreachable         no connection to the service could be made; nothing was done
    ├── ServiceGone                the service went away before it answered: it may be done
    └── ServiceTimeout             the caller's time was up before it answered: it may be done

The shape follows the errors of ``qemu.qmp``; the codes become the ``type`` of RFC 9457 problem
documents, so they are stable: a code is never renamed and never reused.
"""

from __future__ import annotations

from typing import ClassVar, Self

from linkmgr.text.untrusted import SENTENCE_LIMIT, printable


class LinkmgrError(Exception):
    """Base of all errors of linkmgr.

    It answers four questions, in this order in ``str()``: what happened, to which NIC, what state
    the NIC is in now, and what to do. The layer that raises knows the first and the last; the
    manager adds the others with `about` on the way out, so that the type survives.

    :param what: what happened, one clause without a final full stop.
    :param hint: what to do about it, one clause without a final full stop.
    """

    code: ClassVar[str] = "error"

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.nic: str | None = None
        self.state: str | None = None

    def about(self, nic: str, state: str | None = None) -> Self:
        """Say which NIC this was about and what state it is in; an inner layer's word stays."""
        self.nic = self.nic or nic
        self.state = self.state or state
        return self

    def __str__(self) -> str:
        text = f"{self.nic}: {self.what}" if self.nic else self.what
        if self.state:
            text += f". {self.nic} is {self.state}"
        if self.hint:  # of an error inside another one both may say what to do
            text += f"; {self.hint}" if "To do: " in text else f". To do: {self.hint}"
        return text


class BadRequest(LinkmgrError):
    """The call itself is wrong; nothing was tried."""

    code = "bad-request"


class BadName(BadRequest):
    """A name that cannot be the name of anything."""

    code = "bad-name"


class AmbiguousNic(BadRequest):
    """Several NICs have that name; the hint tells them apart."""

    code = "ambiguous-nic"


class BadOption(BadRequest):
    """An option of a network or port that is unknown, missing or has a wrong value."""

    code = "bad-option"


class BadConfig(BadRequest):
    """The configuration file cannot be read, or says something that it cannot say."""

    code = "bad-config"


class Forbidden(LinkmgrError):
    """The caller may not do this; nothing was tried."""

    code = "forbidden"


class BadFd(BadRequest):
    """An fd that was handed over and is no tap or macvtap which a NIC can use."""

    code = "bad-fd"


class CannotPrepare(BadRequest):
    """A libvirt domain, or a NIC of it, that cannot be made to boot on a hub."""

    code = "cannot-prepare"

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        # The author of the XML chose the names in it, and root reads this in a terminal.
        super().__init__(
            printable(what, SENTENCE_LIMIT),
            hint=None if hint is None else printable(hint, SENTENCE_LIMIT),
        )

    def about(self, nic: str, state: str | None = None) -> Self:
        """As `LinkmgrError.about`, with no more of a name than shows which it is."""
        return super().about(printable(nic), state)


class BadMetadata(BadRequest):
    """The cables that a libvirt domain's XML asks for cannot be read, or cannot be asked for."""

    code = "bad-metadata"


class NotFound(LinkmgrError):
    """What was named does not exist."""

    code = "not-found"


class UnknownVm(NotFound):
    """No VM of that name was added."""

    code = "unknown-vm"


class UnknownNic(NotFound):
    """The VM has no NIC of that alias."""

    code = "unknown-nic"


class UnknownNetwork(NotFound):
    """No network of that name was created."""

    code = "unknown-network"


class UnknownPort(NotFound):
    """The network has no port of that name."""

    code = "unknown-port"


class Conflict(LinkmgrError):
    """It exists, but is not free for this."""

    code = "conflict"


class AlreadyExists(Conflict):
    """The name is taken by something with other properties."""

    code = "already-exists"


class NetworkInUse(Conflict):
    """The network still has ports that were created, or NICs plugged into it."""

    code = "network-in-use"


class PortInUse(Conflict):
    """Another NIC is plugged into the port."""

    code = "port-in-use"


class MacInUse(Conflict):
    """Another NIC with the same address is plugged into the network."""

    code = "mac-in-use"


class ReadOnly(Conflict):
    """It is described by the configuration file, and can be changed only there."""

    code = "read-only"


class BeingRemoved(Conflict):
    """The VM is being removed, so what waited for one of its NICs was not begun: ask again."""

    code = "being-removed"


class Stopping(LinkmgrError):
    """linkmgr is stopping, so what waited for its turn was not begun: ask again."""

    code = "stopping"


class CannotAttach(LinkmgrError):
    """This NIC and this network do not go together."""

    code = "cannot-attach"


class NoCommonEndpoint(CannotAttach):
    """The driver supplies none of the endpoint kinds of the offer."""

    code = "no-common-endpoint"


class MtuTooLarge(CannotAttach):
    """The network carries larger frames than the NIC can take.

    :param mtu: bytes that it carries; ``None`` when that is not known, as over HTTP.
    """

    code = "mtu-too-large"

    def __init__(self, what: str, *, hint: str | None = None, mtu: int | None = None) -> None:
        super().__init__(what, hint=hint)
        self.mtu = mtu


class NotOnHub(CannotAttach):
    """The NIC's peer is not a hub port, so QEMU can never exchange its backend."""

    code = "not-on-hub"


class NoSink(CannotAttach):
    """The hub has no sink port; the guest's first frame without a cable would wedge the NIC."""

    code = "no-sink"


class HubCrowded(CannotAttach):
    """The hub carries more than one NIC and one cable; plugging would join networks."""

    code = "hub-crowded"


class UnusableNicId(CannotAttach):
    """QEMU knows the NIC by no id, or by one that cannot be a name: start the guest with one."""

    code = "unusable-nic-id"


class HostError(LinkmgrError):
    """The kernel of this host refused."""

    code = "host-error"


class LinkMissing(HostError):
    """A network device that is needed does not exist."""

    code = "link-missing"


class LinkBusy(HostError):
    """A network device is taken by something that excludes this use."""

    code = "link-busy"


class NameTaken(HostError):
    """A network device of that name exists and is not ours."""

    code = "name-taken"


class Denied(HostError):
    """A privilege is missing, most often CAP_NET_ADMIN."""

    code = "denied"


class Unsupported(HostError):
    """This kernel has no such device type or option."""

    code = "unsupported"


class NotForwarding(HostError):
    """A bridge port did not reach the forwarding state in time."""

    code = "not-forwarding"


class StateError(LinkmgrError):
    """The state directory cannot be read or written, so nothing was begun."""

    code = "state-error"


class MonitorError(LinkmgrError):
    """QEMU, as seen through its monitor."""

    code = "monitor-error"


class MonitorUnreachable(MonitorError):
    """No connection to the monitor could be made."""

    code = "monitor-unreachable"


class MonitorReplaced(MonitorUnreachable):
    """Another process listens where the VM's monitor was."""

    code = "monitor-replaced"


class MonitorTooOld(MonitorError):
    """This QEMU was built without something that linkmgr needs."""

    code = "monitor-too-old"


class MonitorGone(MonitorError):
    """The monitor's connection ended before the answer came.

    Whether the command was executed is unknown unless `sent` is false.
    """

    code = "monitor-gone"

    def __init__(self, what: str, *, hint: str | None = None, sent: bool = True) -> None:
        super().__init__(what, hint=hint)
        self.sent = sent


class MonitorTimeout(MonitorError):
    """QEMU did not answer in time.

    A command that was sent is still executed when QEMU comes back: look, never assume. Only with
    `sent` false is it certain that nothing was done.
    """

    code = "monitor-timeout"

    def __init__(self, what: str, *, hint: str | None = None, sent: bool = True) -> None:
        super().__init__(what, hint=hint)
        self.sent = sent


class CommandFailed(MonitorError):
    """QEMU answered with an error.

    :param command: the QMP command.
    :param error_class: QEMU's class, almost always ``GenericError``; never decide from `what`.
    """

    code = "command-failed"

    def __init__(
        self, what: str, *, command: str, error_class: str = "GenericError", hint: str | None = None
    ) -> None:
        super().__init__(what, hint=hint)
        self.command = command
        self.error_class = error_class


class SwitchFailed(MonitorError):
    """The hub did not end up with exactly the new cable; the old one was put back."""

    code = "switch-failed"


class LibvirtError(LinkmgrError):
    """libvirt, as seen through its daemon. Guests and their cables do not depend on it."""

    code = "libvirt-error"


class LibvirtUnreachable(LibvirtError):
    """There is no connection to libvirt now, or it did not answer in time.

    Whether libvirt does what it was asked is unknown unless `sent` is false.
    """

    code = "libvirt-unreachable"

    def __init__(self, what: str, *, hint: str | None = None, sent: bool = False) -> None:
        super().__init__(what, hint=hint)
        self.sent = sent


class LibvirtRefused(LibvirtError):
    """libvirt answered with an error.

    :param number: libvirt's own (``virErrorNumber``); 0 when it is not known, as over HTTP.
    """

    code = "libvirt-refused"

    NO_DOMAIN: ClassVar[int] = 42  #: VIR_ERR_NO_DOMAIN

    def __init__(self, what: str, *, number: int = 0, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.number = number

    @property
    def no_domain(self) -> bool:
        """Whether libvirt has no such domain."""
        return self.number == self.NO_DOMAIN


class ServiceUnreachable(LinkmgrError):
    """No connection to the service could be made; nothing was done."""

    code = "service-unreachable"


class ServiceGone(LinkmgrError):
    """The service went away before it answered: what was asked may or may not have been done."""

    code = "service-gone"


class ServiceTimeout(LinkmgrError):
    """The service did not answer in the time that the caller gave: it may still be done."""

    code = "service-timeout"
