"""Data sets as tensors, and who holds which part of them."""
