"""A domain's XML: read, and edited in places."""
