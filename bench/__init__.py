"""Side-by-side measurements of the cable: with a swap and without, in one and the same run.

No figure of one run means much on another machine, so everything with a budget is a difference or a
ratio of windows that take turns. ``python -m bench`` (as root) prints tables and writes
build/bench.json; see `bench.report` for its keys.
"""
