"""QEMU: its process, and its monitor (`qmp`)."""
