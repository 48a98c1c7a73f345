"""Code that the benchmarks share. It imports `tools` and `act_core`; tests may import it."""
