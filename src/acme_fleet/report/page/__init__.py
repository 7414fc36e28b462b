"""A run's report as one self-contained HTML page."""
