"""Intent and outcome on disk, one JSON document per VM."""
