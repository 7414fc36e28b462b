"""A new fleet file, from the data, the checkpoint and the devices that somebody has."""
