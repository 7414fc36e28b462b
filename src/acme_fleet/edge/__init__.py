"""An edge server: phase 2-1, the header search, and its half of Algorithm 2."""
