"""VMs and their NICs, networks and ports, port bindings. Imports `swap` and below.

`machine` has one VM: its QEMU and its NICs. The list of all VMs is `linkmgr.manager.inventory`'s.
"""
