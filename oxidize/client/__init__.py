"""The client's side: the connection to its server, name look-ups, route changes, and its setup of the host."""
