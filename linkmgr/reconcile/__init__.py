"""Loops and looks that compare what is with what was meant. Imports `inventory` and below.

After a restart: `reconnect` waits for the QEMUs, `recovery` finishes or undoes what was cut off.
While linkmgr runs: `supervisor` (QEMU), `drift` (cables), `orphans` (devices). For the check:
`inspection`, with the comparisons of `checks` and `firewall`.
"""
