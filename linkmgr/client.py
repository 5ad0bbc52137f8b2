"""The verbs of `LinkManager`, in the service: the same names, types and errors."""

from __future__ import annotations


class Client:
    """To be written."""
