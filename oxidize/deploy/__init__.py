"""Deploy a release: build, rehearse, switch, watch, and roll back automatically if it is bad.

The rule: the server is replaced only by takeover, never by restart, and `current` always leads to a release that works.
"""

SETTLE_SECS = 10.0  # how long a release is watched
