"""Benchmarks: each runs its contenders side by side and prints a ratio. `python -m benchmarks` runs them all."""
