"""What is done with many runs: sweeps, comparisons, tables, benchmarks."""
