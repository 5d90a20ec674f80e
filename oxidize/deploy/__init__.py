"""Shipping a release: build, rehearse, switch, watch, and go back by itself when it is bad.

The rule: the server is replaced by takeover alone, never by restart, and `current` always leads to a release that runs.
"""

SETTLE_SECS = 10.0  # for which a release is watched
