"""Whole handshakes in memory, the published Noise vector, and the reasons for which a handshake fails."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from oxidize.errors import DecodeError, StateError
from oxidize.protocol import crypto, noise
from oxidize.protocol.constants import INITIATION_INTERVAL_MIN, KEY_SIZE
from oxidize.protocol.cookie import CookieChecker, CookieJar
from oxidize.protocol.counters import DropReason
from oxidize.protocol.messages import Initiation, Response
from oxidize.protocol.noise import (
    InitiatorState,
    LocalIdentity,
    ReceivedInitiation,
    RemoteIdentity,
    TransportKeys,
    consume_initiation,
    consume_response,
    create_initiation,
    create_response,
    tai64n,
)

NO_MACS = bytes(32)
TIMESTAMP = tai64n(1_700_000_000.0)
PSK = bytes(range(32))
INITIATOR_INDEX = 0x01020304
RESPONDER_INDEX = 0x05060708
LOW_ORDER = bytes(32)


@dataclass
class Pair:
    """Two peers that know each other; `randomness` is seeded, so a failure repeats."""

    initiator: LocalIdentity
    responder: LocalIdentity
    to_responder: RemoteIdentity
    to_initiator: RemoteIdentity
    randomness: random.Random

    def initiate(self) -> tuple[InitiatorState, Initiation]:
        state, message = create_initiation(
            self.initiator, self.to_responder, INITIATOR_INDEX, TIMESTAMP, self.randomness.randbytes
        )
        return state, Initiation.decode(message + NO_MACS)

    def find(self, public_key: bytes) -> RemoteIdentity | None:
        return self.to_initiator if public_key == self.initiator.public_key else None

    def receive(self, message: Initiation) -> ReceivedInitiation:
        received = consume_initiation(self.responder, message, self.find)
        assert isinstance(received, ReceivedInitiation), received
        return received

    def respond(self, received: ReceivedInitiation) -> tuple[Response, TransportKeys]:
        answer = create_response(received, RESPONDER_INDEX, self.randomness.randbytes)
        assert answer is not None
        return Response.decode(answer[0] + NO_MACS), answer[1]


def make_pair(psk: bytes = bytes(KEY_SIZE), responders_psk: bytes | None = None, seed: int = 1) -> Pair:
    randomness = random.Random(seed)
    initiator = LocalIdentity(crypto.generate_private_key(randomness.randbytes))
    responder = LocalIdentity(crypto.generate_private_key(randomness.randbytes))
    return Pair(
        initiator,
        responder,
        RemoteIdentity(initiator, responder.public_key, psk),
        RemoteIdentity(responder, initiator.public_key, psk if responders_psk is None else responders_psk),
        randomness,
    )


class TestWhole:
    @pytest.mark.parametrize("psk", [bytes(KEY_SIZE), PSK], ids=["no psk", "psk"])
    def test_the_keys_of_both_peers_match_in_both_directions(self, psk: bytes) -> None:
        pair = make_pair(psk)
        state, initiation = pair.initiate()
        received = pair.receive(initiation)
        response, responders = pair.respond(received)
        initiators = consume_response(pair.initiator, pair.to_responder, state, response)
        assert initiators is not None
        assert initiators.send_key == responders.receive_key
        assert initiators.receive_key == responders.send_key
        assert initiators.send_key != initiators.receive_key
        assert len(initiators.send_key) == len(initiators.receive_key) == KEY_SIZE

    def test_the_responder_learns_peer_timestamp_and_index_from_an_initiation(self) -> None:
        pair = make_pair()
        state, initiation = pair.initiate()
        received = pair.receive(initiation)
        assert received.remote is pair.to_initiator
        assert received.timestamp == TIMESTAMP
        assert received.sender_index == state.local_index == INITIATOR_INDEX
        assert received.ephemeral == crypto.public_key(state.ephemeral_private)
        response, _ = pair.respond(received)
        assert (response.sender_index, response.receiver_index) == (RESPONDER_INDEX, INITIATOR_INDEX)

    def test_the_sizes_of_messages_without_macs_are_those_of_the_paper(self) -> None:
        pair = make_pair()
        _, initiation = pair.initiate()
        response, _ = pair.respond(pair.receive(initiation))
        assert (len(initiation.encode()), len(response.encode())) == (116, 60)

    def test_every_handshake_has_its_own_keys(self) -> None:
        pair = make_pair()
        keys = set()
        for _ in range(4):
            state, initiation = pair.initiate()
            response, _ = pair.respond(pair.receive(initiation))
            agreed = consume_response(pair.initiator, pair.to_responder, state, response)
            assert agreed is not None
            keys |= {agreed.send_key, agreed.receive_key}
        assert len(keys) == 8

    def test_two_answers_to_one_initiation_have_their_own_keys(self) -> None:
        pair = make_pair()
        _, initiation = pair.initiate()
        received = pair.receive(initiation)
        assert pair.respond(received)[1] != pair.respond(received)[1]

    def test_another_process_can_finish_a_handshake(self) -> None:
        """The recorded state and the two identities, constructed again, are sufficient."""
        pair = make_pair(PSK)
        state, initiation = pair.initiate()
        response, responders = pair.respond(pair.receive(initiation))
        local = LocalIdentity(pair.initiator.private.private_bytes_raw())
        remote = RemoteIdentity(local, pair.responder.public_key, PSK)
        restored = InitiatorState(state.local_index, state.ephemeral_private, state.chaining_key, state.hash)
        initiators = consume_response(local, remote, restored, response)
        assert initiators is not None
        assert initiators.send_key == responders.receive_key


class TestPublishedVectors:
    def test_the_initial_chaining_key_and_hash_are_those_of_other_implementations(self) -> None:
        """The two constants that boringtun and other implementations carry as literals."""
        assert noise._INITIAL_CHAINING_KEY.hex() == "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36"
        assert noise._INITIAL_HASH.hex() == "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3"

    def test_a_handshake_agrees_with_the_published_vector_of_noise_ikpsk2(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """WireGuard differs from plain Noise in its prologue and its payloads only.

        With the vector's prologue, and with its second payload sealed in place of the empty one, the two messages are
        the vector's first two, and the transport keys seal and open all its others.
        """
        vector = json.loads((Path(__file__).parents[2] / "vectors" / "noise_ikpsk2.json").read_text())
        key = {name: bytes.fromhex(value) for name, value in vector["keys"].items()}
        payloads = [bytes.fromhex(message["payload"]) for message in vector["messages"]]
        ciphertexts = [bytes.fromhex(message["ciphertext"]) for message in vector["messages"]]
        monkeypatch.setattr(
            noise,
            "_INITIAL_HASH",
            crypto.blake2s(noise._INITIAL_CHAINING_KEY, bytes.fromhex(vector["prologue"])),
        )
        monkeypatch.setattr(
            noise,
            "seal",
            lambda key, counter, plaintext, hash_: crypto.seal(key, counter, plaintext or payloads[1], hash_),
        )
        initiator, responder = LocalIdentity(key["init_static"]), LocalIdentity(key["resp_static"])
        assert responder.public_key == key["init_remote_static"]
        to_responder = RemoteIdentity(initiator, responder.public_key, key["psk"])
        to_initiator = RemoteIdentity(responder, initiator.public_key, key["psk"])

        state, first = create_initiation(
            initiator, to_responder, INITIATOR_INDEX, payloads[0], lambda _: key["init_ephemeral"]
        )
        assert first[8:] == ciphertexts[0]
        message = Initiation(INITIATOR_INDEX, first[8:40], first[40:88], first[88:])
        received = consume_initiation(responder, message, {initiator.public_key: to_initiator}.get)
        assert isinstance(received, ReceivedInitiation)
        assert received.timestamp == payloads[0]

        answer = create_response(received, RESPONDER_INDEX, lambda _: key["resp_ephemeral"])
        assert answer is not None
        second, responders = answer
        assert second[12:] == ciphertexts[1]
        response = Response(RESPONDER_INDEX, INITIATOR_INDEX, second[12:44], second[44:])
        initiators = consume_response(initiator, to_responder, state, response)
        assert initiators is not None

        for number, (payload, ciphertext) in enumerate(zip(payloads[2:], ciphertexts[2:], strict=True)):
            sender, receiver = (responders, initiators) if number % 2 else (initiators, responders)
            assert crypto.seal(sender.send_key, number // 2, payload, b"") == ciphertext
            assert crypto.unseal(receiver.receive_key, number // 2, ciphertext, b"") == payload


Consume = Callable[[bytes], object | None]  # all checks of a datagram; None when it is refused


def refused_everywhere(genuine: bytes, consume: Consume, positions: range) -> None:
    assert consume(genuine) is not None
    for position in positions:
        for bit in (0x01, 0x80):
            altered = bytearray(genuine)
            altered[position] ^= bit
            assert consume(bytes(altered)) is None, f"byte {position}, bit {bit:#04x}"


class TestTampering:
    def test_an_initiation_with_any_altered_byte_is_refused(self) -> None:
        """As an attacker who does not know the responder's public key: mac1 protects the indices too."""
        pair = make_pair()
        checker = CookieChecker(pair.responder.public_key, pair.randomness.randbytes)
        genuine = CookieJar(pair.responder.public_key).stamp(pair.initiate()[1].encode(), 0.0)

        def consume(data: bytes) -> object | None:
            try:
                message = Initiation.decode(data)
            except DecodeError:
                return None
            if not checker.check_mac1(data):
                return None
            received = consume_initiation(pair.responder, message, pair.find)
            return None if isinstance(received, DropReason) else received

        refused_everywhere(genuine, consume, range(132))

    def test_an_initiation_with_any_altered_field_is_refused_under_a_valid_mac1(self) -> None:
        """As an attacker who knows that key and so can make mac1 valid: only the sender index is not sealed."""
        pair = make_pair()

        def consume(data: bytes) -> object | None:
            received = consume_initiation(pair.responder, Initiation.decode(data + NO_MACS), pair.find)
            if received is DropReason.AUTHENTICATION_FAILED:
                return None
            assert isinstance(received, ReceivedInitiation), received
            return received

        refused_everywhere(pair.initiate()[1].encode(), consume, range(8, 116))

    def test_a_response_with_any_altered_byte_is_refused(self) -> None:
        pair = make_pair()
        state, initiation = pair.initiate()
        response, _ = pair.respond(pair.receive(initiation))
        checker = CookieChecker(pair.initiator.public_key, pair.randomness.randbytes)
        genuine = CookieJar(pair.initiator.public_key).stamp(response.encode(), 0.0)

        def consume(data: bytes) -> object | None:
            try:
                message = Response.decode(data)
            except DecodeError:
                return None
            if not checker.check_mac1(data):
                return None
            return consume_response(pair.initiator, pair.to_responder, state, message)

        refused_everywhere(genuine, consume, range(76))

    def test_a_response_with_any_altered_field_is_refused_under_a_valid_mac1(self) -> None:
        pair = make_pair()
        state, initiation = pair.initiate()
        response, _ = pair.respond(pair.receive(initiation))

        def consume(data: bytes) -> object | None:
            return consume_response(pair.initiator, pair.to_responder, state, Response.decode(data + NO_MACS))

        refused_everywhere(response.encode(), consume, range(8, 60))  # the receiver index must be the state's


class TestRefusals:
    def test_an_initiation_to_another_responder_is_refused(self) -> None:
        pair, other = make_pair(), make_pair(seed=2)
        _, initiation = pair.initiate()
        assert consume_initiation(other.responder, initiation, pair.find) is DropReason.AUTHENTICATION_FAILED

    def test_an_initiation_of_an_unknown_peer_is_refused(self) -> None:
        pair = make_pair()
        asked: list[bytes] = []
        _, initiation = pair.initiate()
        assert consume_initiation(pair.responder, initiation, asked.append) is DropReason.UNKNOWN_PEER
        assert asked == [pair.initiator.public_key]

    def test_an_initiation_with_a_static_key_whose_private_key_is_missing_is_refused(self) -> None:
        """An attacker who knows two public keys can seal one to the other: the static DH must still fail."""
        pair, forger = make_pair(), make_pair(seed=2)
        impostor = LocalIdentity(forger.initiator.private.private_bytes_raw())
        impostor.public_key = pair.initiator.public_key
        to_responder = RemoteIdentity(impostor, pair.responder.public_key)
        _, message = create_initiation(impostor, to_responder, 1, TIMESTAMP, pair.randomness.randbytes)
        asked: list[bytes] = []

        def find(public_key: bytes) -> RemoteIdentity | None:
            asked.append(public_key)
            return pair.find(public_key)

        received = consume_initiation(pair.responder, Initiation.decode(message + NO_MACS), find)
        assert received is DropReason.AUTHENTICATION_FAILED
        assert asked == [pair.initiator.public_key]

    @pytest.mark.parametrize(("ours", "theirs"), [(PSK, bytes(32)), (bytes(32), PSK), (PSK, PSK[::-1])])
    def test_a_response_under_another_preshared_key_is_refused(self, ours: bytes, theirs: bytes) -> None:
        pair = make_pair(ours, theirs)
        state, initiation = pair.initiate()
        response, _ = pair.respond(pair.receive(initiation))  # the key enters with the response
        assert consume_response(pair.initiator, pair.to_responder, state, response) is None

    def test_a_response_to_another_initiation_is_refused(self) -> None:
        pair = make_pair()
        _, earlier = pair.initiate()
        later, _ = pair.initiate()
        response, _ = pair.respond(pair.receive(earlier))
        assert consume_response(pair.initiator, pair.to_responder, later, response) is None

    def test_a_response_of_another_peer_is_refused(self) -> None:
        pair, other = make_pair(), make_pair(seed=2)
        state, _ = pair.initiate()
        _, others = other.initiate()
        response, _ = other.respond(other.receive(others))
        assert consume_response(pair.initiator, pair.to_responder, state, response) is None

    def test_a_response_to_another_index_is_refused(self) -> None:
        pair = make_pair()
        state, initiation = pair.initiate()
        response, _ = pair.respond(pair.receive(initiation))
        other = state._replace(local_index=INITIATOR_INDEX + 1)
        assert consume_response(pair.initiator, pair.to_responder, other, response) is None


class TestLowOrder:
    def test_no_initiation_is_made_for_a_static_key_of_low_order(self) -> None:
        pair = make_pair()
        remote = RemoteIdentity(pair.initiator, LOW_ORDER)
        assert remote.static_shared is None
        with pytest.raises(StateError, match="of low order; expected a key made by"):
            create_initiation(pair.initiator, remote, 1, TIMESTAMP, pair.randomness.randbytes)

    def test_an_initiation_with_a_static_key_of_low_order_is_refused(self) -> None:
        """The static DH with it is public, so any attacker could send an initiation in its name."""
        pair = make_pair()
        _, initiation = pair.initiate()
        remote = RemoteIdentity(pair.responder, LOW_ORDER)
        received = consume_initiation(pair.responder, initiation, lambda _: remote)
        assert received is DropReason.AUTHENTICATION_FAILED

    def test_an_initiation_with_an_ephemeral_key_of_low_order_is_refused(self) -> None:
        pair = make_pair()
        _, initiation = pair.initiate()
        forged = initiation._replace(ephemeral=LOW_ORDER)
        assert consume_initiation(pair.responder, forged, pair.find) is DropReason.AUTHENTICATION_FAILED

    def test_no_response_is_made_for_an_ephemeral_key_of_low_order(self) -> None:
        pair = make_pair()
        received = pair.receive(pair.initiate()[1])._replace(ephemeral=LOW_ORDER)
        assert create_response(received, RESPONDER_INDEX, pair.randomness.randbytes) is None

    def test_a_response_with_an_ephemeral_key_of_low_order_is_refused(self) -> None:
        pair = make_pair()
        state, initiation = pair.initiate()
        response, _ = pair.respond(pair.receive(initiation))
        forged = response._replace(ephemeral=LOW_ORDER)
        assert consume_response(pair.initiator, pair.to_responder, state, forged) is None


class TestValues:
    def test_no_repr_shows_a_secret(self) -> None:
        pair = make_pair(PSK)
        state, initiation = pair.initiate()
        received = pair.receive(initiation)
        _, keys = pair.respond(received)
        secrets = [
            state.ephemeral_private, state.chaining_key, state.hash, received.chaining_key, received.hash,
            keys.send_key, keys.receive_key, PSK, pair.initiator.private.private_bytes_raw(),
            pair.to_responder.static_shared,
        ]  # fmt: skip
        shown = repr([state, received, keys, pair.initiator, pair.to_responder])
        for secret in secrets:
            assert secret is not None
            assert repr(secret) not in shown
            assert secret.hex() not in shown

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_an_identity_with_a_key_of_another_size_is_a_state_error(self, size: int) -> None:
        local = make_pair().initiator
        with pytest.raises(StateError, match=f"private key of {size} bytes"):
            LocalIdentity(bytes(size))
        with pytest.raises(StateError, match=f"public key of {size} bytes"):
            RemoteIdentity(local, bytes(size))
        with pytest.raises(StateError, match=f"preshared key of {size} bytes"):
            RemoteIdentity(local, local.public_key, bytes(size))


class TestTai64n:
    def test_a_label_agrees_with_the_example_of_libtai(self) -> None:
        """https://cr.yp.to/libtai/tai64.html: 400000002a2b2c2d is the second of 1992-06-02 08:07:09 TAI."""
        ten_seconds_behind = datetime(1992, 6, 2, 8, 6, 59, tzinfo=UTC)
        assert tai64n(ten_seconds_behind.timestamp()).hex() == "400000002a2b2c2d" + "00000000"

    def test_the_label_of_the_unix_epoch_is_ten_seconds_of_tai(self) -> None:
        assert tai64n(0.0).hex() == "400000000000000a" + "00000000"

    @pytest.mark.parametrize(
        ("fraction", "nanoseconds"), [(0.0, 0), (0.0167, 0), (0.0168, 1 << 24), (0.5, 29 << 24), (0.9999, 59 << 24)]
    )
    def test_the_nanoseconds_of_a_label_are_rounded_down(self, fraction: float, nanoseconds: int) -> None:
        assert int.from_bytes(tai64n(1_700_000_000 + fraction)[8:], "big") == nanoseconds

    def test_labels_order_as_times_do(self) -> None:
        randomness = random.Random(3)
        times = sorted(randomness.uniform(0, 4e9) for _ in range(1000))
        labels = [tai64n(time) for time in times]
        assert labels == sorted(labels)
        assert {len(label) for label in labels} == {12}

    def test_the_shortest_interval_between_initiations_makes_a_newer_label(self) -> None:
        randomness = random.Random(4)
        for _ in range(1000):
            time = randomness.uniform(1.6e9, 2.0e9)
            assert tai64n(time + INITIATION_INTERVAL_MIN) > tai64n(time), time

    @pytest.mark.parametrize("time", [-1.0, float("nan")])
    def test_a_clock_before_the_epoch_is_a_state_error(self, time: float) -> None:
        with pytest.raises(StateError, match="expected a time after 1970"):
            tai64n(time)


def test_the_shared_secret_of_two_static_keys_is_computed_once_for_the_first_handshake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = make_pair()
    asked: list[bytes] = []

    def counted(private: X25519PrivateKey, public: bytes) -> bytes | None:
        asked.append(public)
        return crypto.shared_secret(private, public)

    monkeypatch.setattr(noise, "shared_secret", counted)
    to_responder = RemoteIdentity(pair.initiator, pair.responder.public_key, PSK)
    RemoteIdentity(pair.initiator, LOW_ORDER)
    assert asked == []
    for _ in range(2):
        create_initiation(pair.initiator, to_responder, INITIATOR_INDEX, TIMESTAMP, pair.randomness.randbytes)
    assert asked == [pair.responder.public_key] * 3  # of the static key once, of the ephemeral ones twice
