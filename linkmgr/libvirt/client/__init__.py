"""libvirt for asyncio: connections, calls in threads, events. Read `connection` first."""
