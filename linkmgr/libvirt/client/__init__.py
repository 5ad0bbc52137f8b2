"""libvirt for asyncio: connections, calls in threads, events."""
