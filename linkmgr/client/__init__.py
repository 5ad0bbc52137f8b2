"""The verbs of `LinkManager`, in the service: the same names, types and errors."""

from linkmgr.client.verbs import Client

__all__ = ["Client"]
