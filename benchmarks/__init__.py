"""Benchmarks: paired ratios, printed by `scripts/bench` and kept in docs/LOG.md."""
