"""The paper's evaluation, ablations and benchmarks of acme-fleet."""
