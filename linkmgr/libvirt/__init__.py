"""libvirt's guests: the client, the XML, the monitors, the domains. Imports `manager` and below.

Read `domains.controller` first, which brings the rest together.
"""
