"""Messages over Flower."""
