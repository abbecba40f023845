"""Clients, slots, supervisors and monitors in one process against one private server.

`world` lets them take turns by seeded choices, loses calls and replies, kills, freezes, and moves
the clock; `tests/engine/simulate.py` is the way in. After a failure `shrink` looks for a shorter
story that fails the same way.
"""
