"""One NIC from cable to cable (`steps`); its carrier. Imports `drivers`, `wirings` and below."""
