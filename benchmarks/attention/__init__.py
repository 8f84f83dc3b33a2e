"""Time and peak memory of attention with LocAt, over attention without: operation, PRR and whole models."""
