"""What running a graph costs, measured beside other schedulers: ``python -m benchmarks``."""

#: Tasks that run at a time, by each of the schedulers that are compared.
SLOTS = 2
