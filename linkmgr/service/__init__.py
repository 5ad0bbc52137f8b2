"""The service: HTTP on a unix socket, and its surroundings."""
