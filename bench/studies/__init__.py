"""Studies, one file each; found by `bench.registry`."""
