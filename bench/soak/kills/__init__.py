"""Random kill -9 of a real service, to see that nothing is lost, left or taken.

``python -m bench.soak.kills`` (as root) runs some worlds at a time, each a network namespace with
guests and a service of its own. The service is killed at random times while it plugs, swaps,
unplugs, repairs and recovers, and started again; see `bench.soak.kills.inspection` for what must be
so each time. It exits with 1 at the first fault. The seed is printed, and can be given.
"""
