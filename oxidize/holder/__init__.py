"""A holder of sockets and file descriptors for machines without systemd, and the processes that it starts."""
