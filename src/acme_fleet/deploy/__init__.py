"""The same roles on many hosts: site files, keys, processes, units. See ``docs/network.md``."""
