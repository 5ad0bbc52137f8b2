"""libvirt's guests: the client, the XML, the monitors, the domains. Imports `manager` and below."""
