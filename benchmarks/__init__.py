"""Measurements: what a full-size model costs on this machine. See `benchmarks/README.md`."""
