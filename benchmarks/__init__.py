"""Benchmarks: each module's docstring states its question and the expected answer."""
