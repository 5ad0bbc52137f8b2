"""Machines and their NICs, networks and ports, bindings. Imports `swap` and below."""
