"""One machine that plays all devices: batched training, and the rival that sees all data."""
