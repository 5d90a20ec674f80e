"""Constants of the WireGuard protocol, and the limits of this implementation.

Source: J. A. Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel" (the paper), sections 5 and 6.
All times are seconds, all sizes bytes.
"""

from math import inf

NEVER = inf  # when a timer ends that is off

# --- Section 5.4: labels of the Noise construction ---
CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
LABEL_MAC1 = b"mac1----"
LABEL_COOKIE = b"cookie--"

# --- Section 5.4: message types and sizes ---
TYPE_INITIATION = 1
TYPE_RESPONSE = 2
TYPE_COOKIE_REPLY = 3
TYPE_DATA = 4

KEY_SIZE = 32
HASH_SIZE = 32
TAG_SIZE = 16
MAC_SIZE = 16
COOKIE_SIZE = 16
COOKIE_NONCE_SIZE = 24
TIMESTAMP_SIZE = 12  # TAI64N

INITIATION_SIZE = 148
RESPONSE_SIZE = 92
COOKIE_REPLY_SIZE = 64
DATA_HEADER_SIZE = 16
DATA_OVERHEAD = DATA_HEADER_SIZE + TAG_SIZE  # a keepalive is exactly this long
PADDING_MULTIPLE = 16

# --- Section 6.1: timers and counters ---
REKEY_AFTER_MESSAGES = 1 << 60
REJECT_AFTER_MESSAGES = (1 << 64) - (1 << 13) - 1
REKEY_AFTER_TIME = 120.0
REJECT_AFTER_TIME = 180.0
REKEY_ATTEMPT_TIME = 90.0
REKEY_TIMEOUT = 5.0
KEEPALIVE_TIMEOUT = 10.0

# --- Section 5.4.7: cookies ---
COOKIE_SECRET_MAX_AGE = 120.0  # "every two minutes"
COOKIE_MAX_AGE = 120.0

# --- From the reference implementations, where the paper gives no number ---
REKEY_TIMEOUT_JITTER_MAX = 0.334  # added to every retry, uniformly
INITIATION_INTERVAL_MIN = 0.02  # initiations of one peer closer than this are ignored
ZERO_KEYS_AFTER_TIME = REJECT_AFTER_TIME * 3  # section 6.3: forget all ephemeral keys
STAGED_PACKETS_MAX = 128  # packets kept for one peer while it has no session; the oldest is dropped first

# --- Limits of this implementation ---
BATCH_PACKETS_MAX = 64  # packets read before they are written; a crash may lose so many
STAGED_PEER_BYTES_MAX = 15 << 20  # of one peer: they must fit into one record of the journal
STAGED_BYTES_MAX = 64 << 20  # of all peers together: a hand-off records them, and a scan of a network fills them
ENDPOINT_RECORD_INTERVAL = 1.0  # between two records of one peer's endpoint: paths may alternate with every packet
PEERS_MAX = 100_000
ENDPOINT_DIGEST_SIZE = 8  # bytes that the records keep of a configured endpoint
PEERS_PER_TIMEOUT_MAX = 16  # peers whose timers run at once
INITIATIONS_PER_TIMEOUT_MAX = 1  # that these may send: each takes some 0.3 ms, for which packets wait
INNER_MTU_MAX = 65_535 - 80  # an inner packet that still fits an outer IPv6 datagram

# Between two handshakes that a device begins with one peer because that peer uses a session which the device has lost:
# the datagram that causes them is not authenticated. `admission` has the limit for all peers.
UNKNOWN_INDEX_INTERVAL = 1.0
# Responses to one initiation, and replies to one, that fail before all others are dropped: only who has seen the
# initiation can forge them, and each costs as much as a genuine one.
FORGED_ANSWERS_MAX = 64
