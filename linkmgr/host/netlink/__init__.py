"""Routing netlink (rtnetlink(7)): messages, changes, dumps, notifications, errors."""
