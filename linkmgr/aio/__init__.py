"""Building blocks for asyncio: threads, sockets, broadcasts. Imports nothing of linkmgr."""
