"""The primitives of WireGuard, each with the interface that the paper gives it.

Rule: algorithms are composed here, never implemented: BLAKE2s and HMAC come from Python's standard library, ChaCha20,
Poly1305 and X25519 from `cryptography` (OpenSSL). Randomness is injected.

Sources: the paper, section 5.4; RFC 7693 (BLAKE2), RFC 2104 (HMAC), RFC 5869 (HKDF), RFC 8439 (ChaCha20-Poly1305),
RFC 7748 (X25519), draft-irtf-cfrg-xchacha-03 (XChaCha20-Poly1305).
"""

import hashlib
import hmac
import struct
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from oxidize.errors import StateError
from oxidize.protocol.constants import COOKIE_NONCE_SIZE, KEY_SIZE, MAC_SIZE

Buffer = bytes | bytearray | memoryview
RandomBytes = Callable[[int], bytes]  # a source of unpredictable bytes, as os.urandom

_KDF_OUTPUTS_MAX = 3  # the paper names KDF1, KDF2 and KDF3

_COUNTER_NONCE = struct.Struct("<4xQ")  # section 5.4.6: 32 zero bits, then the counter

_HCHACHA_NONCE_SIZE = 16  # the first part of an extended nonce; the rest goes to the inner cipher
_CHACHA_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")  # RFC 8439, section 2.3
_CHACHA_BLOCK = struct.Struct("<16I")
_FOUR_WORDS = struct.Struct("<4I")
_EIGHT_WORDS = struct.Struct("<8I")


# --- Hashes and key derivation ---


def blake2s(*parts: Buffer) -> bytes:
    """Return the 32-byte BLAKE2s digest of the parts, one after another: the paper's HASH."""
    digest = hashlib.blake2s()
    for part in parts:
        digest.update(part)
    return digest.digest()


def mac(key: bytes, *parts: Buffer) -> bytes:
    """Return the 16-byte keyed BLAKE2s digest of the parts, one after another: the paper's MAC; key: up to 32 bytes."""
    digest = hashlib.blake2s(key=key, digest_size=MAC_SIZE)
    for part in parts:
        digest.update(part)
    return digest.digest()


def hmac_blake2s(key: bytes, data: bytes) -> bytes:
    """Return HMAC-BLAKE2s, 32 bytes: the paper's HMAC, which is not the keyed mode that `mac` uses."""
    return hmac.digest(key, data, "blake2s")


def kdf(chaining_key: bytes, material: bytes, count: int) -> tuple[bytes, ...]:
    """Return `count` keys of 32 bytes: the paper's KDF1, KDF2 and KDF3, which is HKDF with HMAC-BLAKE2s.

    Raises StateError for a count that the paper does not define.
    """
    if not 1 <= count <= _KDF_OUTPUTS_MAX:
        raise StateError(f"{count} keys asked of the KDF; expected 1 to {_KDF_OUTPUTS_MAX}, as the paper defines")
    secret = hmac_blake2s(chaining_key, material)
    keys: list[bytes] = []
    block = b""
    for number in range(1, count + 1):
        block = hmac_blake2s(secret, block + bytes((number,)))
        keys.append(block)
    return tuple(keys)


# --- Authenticated encryption ---


def seal(key: bytes, counter: int, plaintext: Buffer, associated: bytes) -> bytes:
    """Encrypt and authenticate: the paper's AEAD; returns the ciphertext and its 16-byte tag.

    key: 32 bytes. counter: 0 to 2^64 - 1, never the same twice under one key.
    """
    return ChaCha20Poly1305(key).encrypt(_COUNTER_NONCE.pack(counter), plaintext, associated)


def unseal(key: bytes, counter: int, sealed: Buffer, associated: bytes) -> bytes | None:
    """Return the plaintext of `seal`, or None when the bytes, of any length, are not authentic."""
    try:
        return ChaCha20Poly1305(key).decrypt(_COUNTER_NONCE.pack(counter), sealed, associated)
    except InvalidTag:
        return None


def seal_x(key: bytes, nonce: bytes, plaintext: Buffer, associated: bytes) -> bytes:
    """Encrypt and authenticate under a random 24-byte nonce: the paper's XAEAD; returns the ciphertext and its tag.

    Raises StateError for a nonce of another size.
    """
    subkey, inner_nonce = _extend(key, nonce)
    return ChaCha20Poly1305(subkey).encrypt(inner_nonce, plaintext, associated)


def unseal_x(key: bytes, nonce: bytes, sealed: Buffer, associated: bytes) -> bytes | None:
    """Return the plaintext of `seal_x`, or None when the bytes, of any length, are not authentic.

    Raises StateError for a nonce that is not 24 bytes long.
    """
    subkey, inner_nonce = _extend(key, nonce)
    try:
        return ChaCha20Poly1305(subkey).decrypt(inner_nonce, sealed, associated)
    except InvalidTag:
        return None


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """Return the 32-byte subkey for a 32-byte key and a 16-byte nonce (draft-irtf-cfrg-xchacha-03, section 2.2)."""
    # `cryptography` has no HChaCha20, and rounds in Python would be slow and not constant in time. But a
    # ChaCha20 keystream block is the state after the rounds *plus* the state before them, word by word, while
    # HChaCha20 is the first and the last row of the state after the rounds, without that addition. Both rows held
    # public words (the constants; counter and nonce), so subtracting them from the library's block undoes it exactly.
    block = Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(bytes(_CHACHA_BLOCK.size))
    words = _CHACHA_BLOCK.unpack(block)
    before = _CHACHA_CONSTANTS + _FOUR_WORDS.unpack(nonce)
    after = words[:4] + words[12:]
    return _EIGHT_WORDS.pack(*((sum_ - word) & 0xFFFFFFFF for sum_, word in zip(after, before, strict=True)))


def _extend(key: bytes, nonce: bytes) -> tuple[bytes, bytes]:
    """Return the key and the 12-byte nonce of the inner ChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03, section 2.3)."""
    if len(nonce) != COOKIE_NONCE_SIZE:
        raise StateError(f"XChaCha20 nonce of {len(nonce)} bytes; expected {COOKIE_NONCE_SIZE}")
    return hchacha20(key, nonce[:_HCHACHA_NONCE_SIZE]), bytes(4) + nonce[_HCHACHA_NONCE_SIZE:]


# --- X25519 ---


def generate_private_key(random_bytes: RandomBytes) -> bytes:
    """Return a new private key of 32 bytes, clamped as `wg genkey` does (RFC 7748, section 5)."""
    key = bytearray(random_bytes(KEY_SIZE))
    key[0] &= 248
    key[31] = (key[31] & 127) | 64
    return bytes(key)


def load_private_key(private: bytes) -> X25519PrivateKey:
    """Return the key object for 32 private bytes; raises StateError for another size."""
    check_key_size("private key", private)
    return X25519PrivateKey.from_private_bytes(private)


def public_key(private: bytes) -> bytes:
    """Return the public key of 32 private bytes, as `wg pubkey` does; raises StateError for another size."""
    return load_private_key(private).public_key().public_bytes_raw()


def shared_secret(private: X25519PrivateKey, public: bytes) -> bytes | None:
    """Return the 32-byte Diffie-Hellman result: the paper's DH; None for a public key of low order.

    A key of low order gives zeros with every private key, so it proves nothing (RFC 7748, section 6.1). Raises
    StateError unless `public` has 32 bytes.
    """
    check_key_size("public key", public)
    peer = X25519PublicKey.from_public_bytes(public)
    try:
        return private.exchange(peer)
    except ValueError:  # how the library reports the all-zero result
        return None


def check_key_size(name: str, key: bytes) -> None:
    """Raise StateError unless `key` has 32 bytes; the text gives its size, never its content."""
    if len(key) != KEY_SIZE:
        raise StateError(f"{name} of {len(key)} bytes; expected {KEY_SIZE}, decoded from base64")
