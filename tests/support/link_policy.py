"""The policy of a link with the configuration's default values (tests/unit/test_settings.py compares them)."""

from oxidize.protocol.link_policy import LinkPolicy

DEFAULT_POLICY = LinkPolicy(retry_secs=0.05, retry_secs_max=5.0, retries_max=0, buffer_packets=1000, resend=True)
