"""The HTTP server and its application: routes, schemas, limits."""
