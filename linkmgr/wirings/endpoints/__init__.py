"""The host's side of a cable: the device at an endpoint, its attributes and its filter."""
