"""What running a graph costs, measured beside other schedulers: ``python -m benchmarks``."""
