"""The parts of the benchmarks. Each has a function that returns its groups of cases."""
