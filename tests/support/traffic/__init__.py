"""Real servers, real clients and what was on the wire between them, for the tests that replace processes."""
