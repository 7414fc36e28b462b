"""Ratios against rivals, ``make bench NAME=…`` or ``python -m acme_research.benchmarks.NAME``."""
