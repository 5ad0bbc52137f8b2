"""Text for people (`suggest`), and by strangers (`untrusted`). Imports nothing of linkmgr."""
