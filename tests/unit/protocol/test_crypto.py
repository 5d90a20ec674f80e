"""The primitives against published vectors, and against `wg`."""

import base64
import hashlib
import json
import random
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from oxidize.errors import StateError
from oxidize.protocol import crypto
from oxidize.protocol.constants import KEY_SIZE

VECTORS = Path(__file__).parents[2] / "vectors"
AEAD = {
    name: {key: bytes.fromhex(value) for key, value in vector.items() if key != "source"}
    for name, vector in json.loads((VECTORS / "aead.json").read_text()).items()
}

P = 2**255 - 19
LOW_ORDER_POINTS = [  # https://cr.yp.to/ecdh.html, "How do I validate Curve25519 public keys?"
    point.to_bytes(32, "little")
    for point in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        P - 1,
        P,
        P + 1,
    )
]


class TestBlake2s:
    def test_blake2s_agrees_with_rfc_7693_appendix_b(self) -> None:
        expected = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
        assert crypto.blake2s(b"abc").hex() == expected
        assert crypto.blake2s(b"a", bytearray(b"b"), b"", memoryview(b"c")).hex() == expected

    def test_blake2s_and_mac_pass_the_self_test_of_rfc_7693_appendix_e(self) -> None:
        """Every digest of the self-test, computed by the functions of `crypto` where they have its size."""

        def sequence(length: int, seed: int) -> bytes:
            a, b, out = (0xDEAD4BAD * seed) & 0xFFFFFFFF, 1, bytearray()
            for _ in range(length):
                a, b = b, (a + b) & 0xFFFFFFFF
                out.append(b >> 24)
            return bytes(out)

        grand = hashlib.blake2s()
        for size in (16, 20, 28, 32):
            key = sequence(size, size)
            for length in (0, 3, 64, 65, 255, 1024):
                data = sequence(length, length)
                unkeyed = crypto.blake2s(data) if size == 32 else hashlib.blake2s(data, digest_size=size).digest()
                keyed = (
                    crypto.mac(key, data) if size == 16 else hashlib.blake2s(data, key=key, digest_size=size).digest()
                )
                grand.update(unkeyed)
                grand.update(keyed)
        assert grand.hexdigest() == "6a411f08ce25adcdfb02aba641451cec53c598b24f4fc787fbdc88797f4c1dfe"

    def test_the_mac_of_parts_is_the_mac_of_the_whole(self) -> None:
        assert crypto.mac(b"k" * 32, b"ab", memoryview(b"c"), b"") == crypto.mac(b"k" * 32, b"abc")
        assert crypto.mac(b"k" * 32, b"abc") != crypto.mac(b"j" * 32, b"abc")


class TestKeyDerivation:
    @pytest.mark.parametrize("key", [b"", b"k", b"k" * 32, b"k" * 64, b"k" * 65])
    def test_hmac_agrees_with_rfc_2104(self, key: bytes) -> None:
        block = (hashlib.blake2s(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
        inner = hashlib.blake2s(bytes(byte ^ 0x36 for byte in block) + b"data").digest()
        outer = hashlib.blake2s(bytes(byte ^ 0x5C for byte in block) + inner).digest()
        assert crypto.hmac_blake2s(key, b"data") == outer

    @pytest.mark.parametrize("count", [1, 2, 3])
    @pytest.mark.parametrize(
        ("chaining_key", "material", "expected"),
        [  # wireguard-go, device/kdf_test.go
            (
                b"test-key",
                b"test-input",
                (
                    "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
                    "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
                    "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24",
                ),
            ),
            (
                b"wireguard",
                b"wireguard",
                (
                    "491d43bbfdaa8750aaf535e334ecbfe5129967cd64635101c566d4caefda96e8",
                    "1e71a379baefd8a79aa4662212fcafe19a23e2b609a3db7d6bcba8f560e3d25f",
                    "31e1ae48bddfbe5de38f295e5452b1909a1b4e38e183926af3780b0c1e1f0160",
                ),
            ),
            (
                b"",
                b"",
                (
                    "8387b46bf43eccfcf349552a095d8315c4055beb90208fb1be23b894bc2ed5d0",
                    "58a0e5f6faefccf4807bff1f05fa8a9217945762040bcec2f4b4a62bdfe0e86e",
                    "0ce6ea98ec548f8e281e93e32db65621c45eb18dc6f0a7ad94178610a2f7338e",
                ),
            ),
        ],
    )
    def test_the_kdf_agrees_with_wireguard_go(
        self, chaining_key: bytes, material: bytes, expected: tuple[str, ...], count: int
    ) -> None:
        assert tuple(key.hex() for key in crypto.kdf(chaining_key, material, count)) == expected[:count]

    @pytest.mark.parametrize("count", [-1, 0, 4])
    def test_the_kdf_refuses_other_counts(self, count: int) -> None:
        with pytest.raises(StateError, match="expected 1 to 3"):
            crypto.kdf(b"", b"", count)


class TestAead:
    def test_seal_and_unseal_agree_with_rfc_8439_appendix_a5(self) -> None:
        vector = AEAD["rfc8439_appendix_a5"]
        counter = int.from_bytes(vector["nonce"][4:], "little")
        assert crypto.seal(vector["key"], counter, vector["plaintext"], vector["associated"]) == vector["sealed"]
        assert crypto.unseal(vector["key"], counter, vector["sealed"], vector["associated"]) == vector["plaintext"]

    def test_hchacha20_agrees_with_the_draft(self) -> None:
        vector = AEAD["xchacha_draft_hchacha20"]
        assert crypto.hchacha20(vector["key"], vector["nonce"]) == vector["subkey"]

    def test_hchacha20_accepts_a_nonce_of_the_largest_words(self) -> None:
        """The nonce's first word is ChaCha20's counter: it may be the last one before it wraps."""
        assert len(crypto.hchacha20(b"\xff" * 32, b"\xff" * 16)) == 32

    def test_seal_x_and_unseal_x_agree_with_the_draft(self) -> None:
        vector = AEAD["xchacha_draft_aead"]
        key, nonce, associated = vector["key"], vector["nonce"], vector["associated"]
        assert crypto.seal_x(key, nonce, vector["plaintext"], associated) == vector["sealed"]
        assert crypto.unseal_x(key, nonce, vector["sealed"], associated) == vector["plaintext"]

    def test_an_altered_ciphertext_key_nonce_or_associated_data_is_not_authentic(self) -> None:
        key, nonce, sealed = b"k" * 32, b"n" * 24, crypto.seal(b"k" * 32, 7, b"text", b"ad")
        assert crypto.unseal(key, 7, memoryview(sealed), b"ad") == b"text"
        assert crypto.unseal(key, 8, sealed, b"ad") is None
        assert crypto.unseal(key, 7, sealed, b"da") is None
        assert crypto.unseal(b"j" * 32, 7, sealed, b"ad") is None
        sealed_x = crypto.seal_x(key, nonce, b"text", b"ad")
        assert crypto.unseal_x(key, nonce, bytearray(sealed_x), b"ad") == b"text"
        assert crypto.unseal_x(key, b"m" + nonce[1:], sealed_x, b"ad") is None
        assert crypto.unseal_x(key, nonce[:-1] + b"m", sealed_x, b"ad") is None
        for position in range(len(sealed)):
            altered = bytearray(sealed)
            altered[position] ^= 1
            assert crypto.unseal(key, 7, altered, b"ad") is None
            altered_x = bytearray(sealed_x)
            altered_x[position] ^= 1
            assert crypto.unseal_x(key, nonce, altered_x, b"ad") is None

    @pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 100])
    def test_unsealing_bytes_of_any_length_returns_none(self, length: int) -> None:
        assert crypto.unseal(b"k" * 32, 0, bytes(length), b"") is None
        assert crypto.unseal_x(b"k" * 32, b"n" * 24, bytes(length), b"") is None

    @pytest.mark.parametrize("size", [0, 12, 23, 25])
    def test_an_extended_nonce_of_another_size_is_a_state_error(self, size: int) -> None:
        with pytest.raises(StateError, match=f"of {size} bytes; expected 24"):
            crypto.seal_x(b"k" * 32, bytes(size), b"", b"")
        with pytest.raises(StateError, match=f"of {size} bytes; expected 24"):
            crypto.unseal_x(b"k" * 32, bytes(size), bytes(16), b"")


def scalar_multiply(scalar: bytes, point: bytes) -> bytes:
    shared = crypto.shared_secret(X25519PrivateKey.from_private_bytes(scalar), point)
    assert shared is not None
    return shared


class TestX25519:
    @pytest.mark.parametrize(
        ("scalar", "point", "expected"),
        [  # RFC 7748, section 5.2
            (
                "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
                "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
                "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
            ),
            (
                "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
                "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
                "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
            ),
        ],
    )
    def test_x25519_agrees_with_rfc_7748_section_5_2(self, scalar: str, point: str, expected: str) -> None:
        assert scalar_multiply(bytes.fromhex(scalar), bytes.fromhex(point)).hex() == expected

    def test_a_thousand_iterations_of_x25519_agree_with_rfc_7748_section_5_2(self) -> None:
        scalar = point = (9).to_bytes(32, "little")
        for iteration in range(1, 1001):
            scalar, point = scalar_multiply(scalar, point), scalar
            if iteration == 1:
                assert scalar.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
        assert scalar.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"

    def test_x25519_agrees_with_rfc_7748_section_6_1(self) -> None:
        alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
        bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
        shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
        alice_public, bob_public = crypto.public_key(alice), crypto.public_key(bob)
        assert alice_public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
        assert bob_public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
        assert scalar_multiply(alice, bob_public).hex() == shared
        assert scalar_multiply(bob, alice_public).hex() == shared

    @pytest.mark.parametrize("point", LOW_ORDER_POINTS, ids=bytes.hex)
    def test_public_keys_of_low_order_share_no_secret(self, point: bytes) -> None:
        private = crypto.load_private_key(crypto.generate_private_key(random.Random(1).randbytes))
        assert crypto.shared_secret(private, point) is None

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_a_key_of_another_size_is_a_state_error(self, size: int) -> None:
        with pytest.raises(StateError, match=f"private key of {size} bytes; expected 32"):
            crypto.public_key(bytes(size))
        with pytest.raises(StateError, match=f"public key of {size} bytes; expected 32"):
            crypto.shared_secret(crypto.load_private_key(b"k" * 32), bytes(size))

    def test_errors_show_no_key(self) -> None:
        with pytest.raises(StateError) as caught:
            crypto.load_private_key(b"secret" * 5)
        assert "secret" not in str(caught.value)
        assert (b"secret" * 5).hex() not in str(caught.value)


def wg(*arguments: str, text: str = "") -> bytes:
    done = subprocess.run(["wg", *arguments], input=text, capture_output=True, text=True, check=True, timeout=10)
    return base64.b64decode(done.stdout.strip(), validate=True)


class TestAgainstWg:
    """`wg` comes with the Debian package wireguard-tools, which `make test` installs."""

    def test_private_keys_are_clamped_as_wg_clamps_them(self) -> None:
        for private in [wg("genkey") for _ in range(4)]:
            assert crypto.generate_private_key({KEY_SIZE: private}.__getitem__) == private

    @pytest.mark.parametrize("fill", [0x00, 0xFF, 0xA5])
    def test_clamping_sets_and_clears_every_fixed_bit(self, fill: int) -> None:
        private = crypto.generate_private_key(lambda size: bytes([fill]) * size)
        assert (private[0] & 0b111, private[31] & 0b1100_0000) == (0, 0b0100_0000)
        assert private[1:31] == bytes([fill]) * 30

    def test_public_keys_are_those_of_wg(self) -> None:
        private_keys = [wg("genkey"), crypto.generate_private_key(random.Random(2).randbytes)]
        for private in private_keys:
            assert crypto.public_key(private) == wg("pubkey", text=base64.b64encode(private).decode())
