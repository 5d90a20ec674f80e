"""The WireGuard protocol, pure: bytes, time and randomness go in, results come out."""
