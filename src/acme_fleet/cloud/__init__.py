"""The cloud server: phase 1, Algorithm 1, over all clusters."""
