"""acme-fleet."""
