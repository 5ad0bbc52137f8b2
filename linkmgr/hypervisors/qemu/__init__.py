"""QEMU: its process, with a monitor that reconnects (`process`), and that monitor (`qmp`)."""
