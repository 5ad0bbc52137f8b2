"""The domains of libvirt's own tests, fed to what reads and rewrites a domain's XML."""
