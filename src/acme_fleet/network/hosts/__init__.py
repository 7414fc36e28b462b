"""One host of a fleet: site file, keys, processes, units. See ``docs/network.md``."""
