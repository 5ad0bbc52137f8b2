"""What an attacker costs others: a guest's replugs while it does its worst, beside a sink.

An attacker on a machine of two cores takes CPU time from everything, whatever it talks to. So each
one is aimed in turn at the service and at a sink, a process that only reads and discards, and the
two are compared: what is more than that is the service's own fault.
"""
