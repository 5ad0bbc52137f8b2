"""What runs the guests. Imports `aio` and the words."""
