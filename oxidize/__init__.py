"""Oxidize: a WireGuard relay and client whose process is replaced under traffic."""

__version__ = "0.2.0"
