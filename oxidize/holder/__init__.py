"""A holder of sockets and descriptors for machines without systemd, with the processes that it starts."""
