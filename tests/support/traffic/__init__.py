"""Real servers, real clients and captures of the traffic between them, for tests that replace processes."""
