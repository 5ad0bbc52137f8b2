"""Thousands of swaps through a real service, to see what grows that should not.

``python -m bench.soak`` (as root) swaps the cables of all NICs of two guests at once, brings all of
them home now and then and counts what there is; see `bench.soak.census`. It prints a table, writes
build/soak.json and exits with 1 if something has grown.
"""
