"""Many hosts: the same roles over Flower, and the processes of each host."""
