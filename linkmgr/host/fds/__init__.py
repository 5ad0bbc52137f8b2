"""File descriptors of taps and macvtaps: passed, checked, kept, and who holds them.

`registry` has those that callers left, `store` those that outlive the process.
"""
