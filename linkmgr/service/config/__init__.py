"""The configuration file, and the networks that it declares."""
