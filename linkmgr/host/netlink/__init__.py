"""Routing netlink (rtnetlink(7)): messages, changes, dumps, notifications, errors.

`changes` changes, `dump` reads, `reader` reads for asyncio, `monitor` hears of changes.
"""
