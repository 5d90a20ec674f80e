"""The two macs of a handshake message, and the cookies that let a loaded responder ask for proof of address.

Rule: nothing is answered without a valid mac1, so a sender that does not know this device's public key cannot find out
that it exists; and under load no Diffie-Hellman is computed without a valid mac2, so a sender that cannot receive at
its source address cannot cause one. All comparisons take the same time whether they fail early or late.

Source: the paper, sections 5.3, 5.4.4 and 5.4.7.
"""

from hmac import compare_digest

from oxidize.errors import StateError
from oxidize.protocol.constants import (
    COOKIE_MAX_AGE,
    COOKIE_NONCE_SIZE,
    COOKIE_SECRET_MAX_AGE,
    FORGED_ANSWERS_MAX,
    LABEL_COOKIE,
    LABEL_MAC1,
    MAC_SIZE,
)
from oxidize.protocol.crypto import Buffer, RandomBytes, blake2s, mac, seal_x, unseal_x
from oxidize.protocol.messages import MACS_SIZE, CookieReply, split_macs

_SECRET_SIZE = 32  # the paper's R_m, which it only calls random; a whole BLAKE2s key
_NO_MAC2 = bytes(MAC_SIZE)


def mac1_key(public_key: bytes) -> bytes:
    """Return the 32-byte key of mac1 in messages *to* the owner of this static key."""
    return blake2s(LABEL_MAC1, public_key)


def cookie_key(public_key: bytes) -> bytes:
    """Return the 32-byte key under which the owner of this static key sends its cookies."""
    return blake2s(LABEL_COOKIE, public_key)


class CookieChecker:
    """The macs of handshake messages that this device receives, and the cookies that it gives out.

    secret: the key of its cookies, 32 bytes, or empty before the first `refresh`; secret_created_at: seconds.
    Both are set from outside when a predecessor's are restored, so that its cookies stay valid.
    """

    __slots__ = ("_cookie_key", "_mac1_key", "_random_bytes", "secret", "secret_created_at")

    def __init__(self, local_public_key: bytes, random_bytes: RandomBytes) -> None:
        self._mac1_key = mac1_key(local_public_key)
        self._cookie_key = cookie_key(local_public_key)
        self._random_bytes = random_bytes
        self.secret: bytes = b""
        self.secret_created_at: float = 0.0

    def refresh(self, now: float) -> bool:
        """Make a new secret when there is none or it is two minutes old; return whether it changed.

        A change must be recorded before the first cookie made of it is sent.
        """
        if self._is_fresh(now):
            return False
        self.secret = self._random_bytes(_SECRET_SIZE)
        self.secret_created_at = now
        return True

    def check_mac1(self, data: Buffer) -> bool:
        """Return whether the sender of a handshake message knows this device's public key; False for too few bytes."""
        if len(data) < MACS_SIZE:
            return False
        covered, mac1, _, _ = split_macs(data)
        return compare_digest(mac1, mac(self._mac1_key, covered))

    def check_mac2(self, data: Buffer, source: bytes, now: float) -> bool:
        """Return whether a handshake message proves that its sender received this device's cookie at its address.

        source: `Endpoint.identity` of the message's source.
        """
        if len(data) < MACS_SIZE or not self._is_fresh(now):
            return False
        view = memoryview(data)
        return compare_digest(view[-MAC_SIZE:], mac(self._cookie(source), view[:-MAC_SIZE]))

    def create_reply(self, data: Buffer, sender_index: int, source: bytes, now: float) -> bytes:
        """Return the cookie reply to a handshake message, 64 bytes (section 5.4.7).

        data: a message whose mac1 is valid. sender_index: the index in it. source: `Endpoint.identity` of its source.
        Raises StateError without a fresh secret: call `refresh` with the same `now` before.
        """
        if not self._is_fresh(now):
            raise StateError(
                f"cookie secret of {self.secret_created_at} s is stale at {now} s; call refresh(now) first"
            )
        _, mac1, _, _ = split_macs(data)
        nonce = self._random_bytes(COOKIE_NONCE_SIZE)
        return CookieReply(sender_index, nonce, seal_x(self._cookie_key, nonce, self._cookie(source), mac1)).encode()

    def _cookie(self, source: bytes) -> bytes:
        return mac(self.secret, source)

    def _is_fresh(self, now: float) -> bool:
        return self.secret != b"" and now - self.secret_created_at < COOKIE_SECRET_MAX_AGE


class CookieJar:
    """The macs of handshake messages that this device sends to one peer, and the cookie that the peer sent.

    cookie: 16 bytes, or empty; received_at: seconds. last_mac1: of the latest message, until a reply to it comes, then
    empty; a reply is bound to it. All three are set from outside when they are restored.
    """

    __slots__ = ("_forged", "_remote_public_key", "cookie", "last_mac1", "received_at")

    def __init__(self, remote_public_key: bytes) -> None:
        # The keys that follow from it are computed for each message: most peers are never sent one.
        self._remote_public_key = remote_public_key
        self.cookie: bytes = b""
        self.received_at: float = 0.0
        self.last_mac1: bytes = b""
        self._forged = 0  # replies to the latest message that were not authentic

    def stamp(self, message: bytes, now: float) -> bytes:
        """Return a handshake message with mac1 and mac2; without a fresh cookie, mac2 is zeros (section 5.4.4)."""
        mac1 = mac(mac1_key(self._remote_public_key), message)
        self.last_mac1 = mac1
        self._forged = 0
        if not self.cookie or now - self.received_at >= COOKIE_MAX_AGE:
            return message + mac1 + _NO_MAC2
        return message + mac1 + mac(self.cookie, message, mac1)

    def consume_reply(self, reply: CookieReply, now: float) -> bool:
        """Keep the cookie of an authentic reply to the latest message; return whether the reply is authentic.

        A message takes one reply, as in the reference implementation: a replay cannot make a cookie look younger.
        """
        if not self.last_mac1 or self._forged >= FORGED_ANSWERS_MAX:
            return False
        cookie = unseal_x(cookie_key(self._remote_public_key), reply.nonce, reply.encrypted_cookie, self.last_mac1)
        if cookie is None:
            self._forged += 1
            return False
        self.cookie = cookie
        self.received_at = now
        self.last_mac1 = b""
        return True
