"""Which peer may do what: credentials (`peer`), rules (`policy`), monitor paths, quotas."""
