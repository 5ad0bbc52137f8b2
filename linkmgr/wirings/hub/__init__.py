"""The hub wiring: the NIC is a port of a QEMU hub, and its cable another."""
