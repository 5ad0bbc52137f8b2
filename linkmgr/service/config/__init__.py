"""The configuration file (`schema`), and the networks that it declares."""
