"""The hub wiring: the NIC is a port of a QEMU hub, and its cable another.

`wiring` implements `linkmgr.wirings.base` in QEMU's commands, `topology` reads a hub, `qemu_args`
boots a NIC on one, `placeholder` stands for the backend that libvirt made.
"""
