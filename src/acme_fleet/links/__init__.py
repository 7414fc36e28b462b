"""Links between roles: the interface, the wire format, and peers in one process."""
