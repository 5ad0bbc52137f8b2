"""File descriptors of taps and macvtaps: passed, checked, kept, and who holds them."""
