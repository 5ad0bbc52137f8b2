"""`linkmgr prepare`: a domain's XML rewritten so that its NICs boot on hubs, and back.

`rewrite` does both, `preconditions` and `undo_checks` say what is refused.
"""
