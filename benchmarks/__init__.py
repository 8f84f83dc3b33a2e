"""What LocAt costs: ``python -m benchmarks.models --help``."""
