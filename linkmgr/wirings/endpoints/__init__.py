"""The host's side of a cable: the device at an endpoint, its attributes and its filter.

`host_side` makes, attaches and restores the device, `device` finds and names it, `attributes` is
the table of what is compared and repaired, `receive_filter` follows the guest's.
"""
