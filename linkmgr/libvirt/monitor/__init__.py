"""The monitors of libvirt's guests: QEMUs that connect, and libvirt's own monitor."""
