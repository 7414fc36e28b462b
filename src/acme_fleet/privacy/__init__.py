"""Protections of what a device sends: sketches, noise, masks, and their accounting."""
