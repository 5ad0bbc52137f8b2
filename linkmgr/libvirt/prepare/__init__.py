"""`linkmgr prepare`: a domain's XML rewritten so that its NICs boot on hubs, and back."""
