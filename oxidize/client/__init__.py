"""The client's side: the connection to its server, name look-ups, route changes, settings of the host."""
