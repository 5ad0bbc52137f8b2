"""The verbs of `LinkManager`, in the service: the same names, types and errors.

`client` has the verbs, `http` their requests, `events` the stream of events. Imports `state.codec`
and the words.
"""

from linkmgr.client.client import Client

__all__ = ["Client"]
