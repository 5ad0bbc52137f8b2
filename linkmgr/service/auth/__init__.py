"""Which peer may do what: credentials, policy, monitor paths, quotas."""
