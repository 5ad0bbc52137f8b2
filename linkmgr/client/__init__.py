"""The verbs of `LinkManager`, in the service: the same names, types and errors."""

from linkmgr.client.client import Client

__all__ = ["Client"]
