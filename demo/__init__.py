"""The demonstration: clients under load while the server is replaced, and the verdict."""
