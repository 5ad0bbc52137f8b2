"""Text for people, and text by strangers. Imports nothing of linkmgr."""
