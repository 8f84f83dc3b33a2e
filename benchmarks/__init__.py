"""What LocAt costs: ``python -m benchmarks.attention --help``."""
