"""The HTTP server and its application: routes, schemas, limits.

A request comes through `server`, then the layers that `app` puts around the application
(`fair_share`, `rules`, `body_limit`), to a route, which answers with its `request_context`.
"""
