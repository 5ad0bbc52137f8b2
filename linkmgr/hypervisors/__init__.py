"""What runs the guests: QEMU. Imports `aio`, `text` and the words."""
