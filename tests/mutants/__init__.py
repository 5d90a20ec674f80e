"""Mutants: bugs that are planted on purpose, one at a time, in a copy of the source; a test must find each of them."""
