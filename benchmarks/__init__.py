"""Benchmarks: each module's docstring says what it asks and what it is expected to answer."""
