"""The monitors of libvirt's guests: QEMUs that connect, and libvirt's own monitor.

`listener` has the socket and `peer_identity` says which domain's QEMU connects; `passthrough` is
the way through libvirt.
"""
