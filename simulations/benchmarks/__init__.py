"""Benchmark commands; each prints a table and writes raw JSON under runs/bench/."""
