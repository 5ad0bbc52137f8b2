"""One NIC from cable to cable, step by step; the carrier. Imports drivers and wirings."""
