"""A domain's XML: read, and edited in places.

`document` has the text, each other file one part of it: NICs, desired cables, what linkmgr
prepare writes, the monitor; `status_file` is libvirt's file about a running domain.
"""
