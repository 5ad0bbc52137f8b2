"""systemd: notification, fd store, journal."""
