"""The life of a generation: how it starts, serves, is taken over and ends."""
