"""Latency, memory and power of models on a machine, and the constants of Eq. 2 from them."""
