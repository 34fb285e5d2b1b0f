"""Benchmarks: ours beside our peers in the same run, from a checkout: ``python -m benches.<script>``."""
