"""Training-time defenses, one file each; found by `bench.registry`, listed nowhere."""
