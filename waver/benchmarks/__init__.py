"""Benchmarks of waver beside a conventional baseline: one module for each row of the table of `waver bench`."""
