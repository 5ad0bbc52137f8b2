"""`LinkManager`, which composes the rooms below. Imports `reconcile` and below.

`manager` has the verbs. Its base, `inventory`, has the rest: start and end, lists, names, checks,
and how a verb is run under its locks.
"""
