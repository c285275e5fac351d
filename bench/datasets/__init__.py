"""Data sets, one file each; found by `bench.registry`."""
