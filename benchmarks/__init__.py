"""Benchmarks that check every result against fp64 before they time it; see README.md here."""
