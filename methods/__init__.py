"""Protection methods, one file each; found by `bench.registry`, listed nowhere."""
