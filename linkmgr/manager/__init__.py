"""`LinkManager`, which composes the rooms below. Imports `reconcile` and below."""
