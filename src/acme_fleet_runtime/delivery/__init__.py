"""Releases on a device: pulled, verified, tried, switched to, and rolled back."""
