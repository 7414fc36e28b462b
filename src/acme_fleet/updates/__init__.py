"""A fleet after its run: devices join, leave and change, and data drift."""
