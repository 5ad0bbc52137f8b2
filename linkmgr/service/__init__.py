"""The service: HTTP on a unix socket, and its surroundings. Imports `libvirt` and below.

`main` starts and ends it, `context` has what its parts share.
"""
