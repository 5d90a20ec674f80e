"""The shell: sockets, devices, the loop and the two daemons."""
