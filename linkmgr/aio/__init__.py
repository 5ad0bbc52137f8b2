"""Building blocks for asyncio: threads, sockets, broadcasts, rates. Imports nothing of linkmgr."""
