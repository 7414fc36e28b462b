"""The application that runs inside Flower: two relays without torch, see ``docs/network.md``."""
