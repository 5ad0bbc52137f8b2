"""libvirt's guests: their XML."""
