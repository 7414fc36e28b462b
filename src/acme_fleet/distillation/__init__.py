"""The reference θ0, importance of its units (Eq. 6-8), and distillation from it (Eq. 9)."""
