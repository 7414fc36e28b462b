"""Distillation that makes one backbone elastic, and recovery of a chosen one (Eq. 9)."""
