"""Domains and their desired cables: hooks, events, verbs, migration, link state."""
