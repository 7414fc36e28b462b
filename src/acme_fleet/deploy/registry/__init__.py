"""A registry of fleets, runs, devices, their artifacts and releases, in SQLite or PostgreSQL."""
