"""Macs and cookies: both ends joined in memory."""

import random

import pytest

from oxidize.errors import DecodeError, StateError
from oxidize.protocol.constants import COOKIE_MAX_AGE, COOKIE_SECRET_MAX_AGE
from oxidize.protocol.cookie import CookieChecker, CookieJar, cookie_key, mac1_key
from oxidize.protocol.crypto import blake2s, mac
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.messages import CookieReply

RESPONDER = bytes(range(32))
MESSAGE = b"\x01\0\0\0" + bytes(112)
SOURCE = Endpoint(bytes([192, 0, 2, 1]), 51820).identity
ELSEWHERE = [
    Endpoint(bytes([192, 0, 2, 2]), 51820).identity,
    Endpoint(bytes([192, 0, 2, 1]), 51821).identity,
    Endpoint(bytes(12) + bytes([192, 0, 2, 1]), 51820).identity,
]
SENDER_INDEX = 0x01020304
T0 = 1000.0


def make_checker(now: float = T0) -> CookieChecker:
    checker = CookieChecker(RESPONDER, random.Random(7).randbytes)
    checker.refresh(now)
    return checker


def get_cookie(checker: CookieChecker, jar: CookieJar, now: float, source: bytes = SOURCE) -> None:
    reply = CookieReply.decode(checker.create_reply(jar.stamp(MESSAGE, now), SENDER_INDEX, source, now))
    assert jar.consume_reply(reply, now)


def test_mac1_and_cookie_keys_are_those_of_the_paper() -> None:
    assert mac1_key(RESPONDER) == blake2s(b"mac1----" + RESPONDER)
    assert cookie_key(RESPONDER) == blake2s(b"cookie--" + RESPONDER)


class TestMac1:
    def test_a_message_without_a_cookie_has_mac1_and_a_zero_mac2(self) -> None:
        jar = CookieJar(RESPONDER)
        stamped = jar.stamp(MESSAGE, T0)
        assert stamped == MESSAGE + mac(mac1_key(RESPONDER), MESSAGE) + bytes(16)
        assert jar.last_mac1 == stamped[116:132]

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_the_mac1_of_a_stamped_message_is_valid(self, kind: type) -> None:
        assert make_checker().check_mac1(kind(CookieJar(RESPONDER).stamp(MESSAGE, T0)))

    def test_any_altered_byte_invalidates_mac1(self) -> None:
        checker, stamped = make_checker(), CookieJar(RESPONDER).stamp(MESSAGE, T0)
        for position in range(132):
            altered = bytearray(stamped)
            altered[position] ^= 0x10
            assert not checker.check_mac1(altered), position

    def test_mac1_is_bound_to_the_receiver(self) -> None:
        stamped = CookieJar(bytes(32)).stamp(MESSAGE, T0)
        assert not make_checker().check_mac1(stamped)

    @pytest.mark.parametrize("length", [0, 1, 16, 31])
    def test_a_message_shorter_than_its_macs_has_no_valid_mac(self, length: int) -> None:
        assert not make_checker().check_mac1(bytes(length))
        assert not make_checker().check_mac2(bytes(length), SOURCE, T0)


class TestMac2:
    def test_mac2_without_a_cookie_is_invalid(self) -> None:
        assert not make_checker().check_mac2(CookieJar(RESPONDER).stamp(MESSAGE, T0), SOURCE, T0)

    def test_mac2_with_a_cookie_is_valid_only_from_the_address_of_the_cookie(self) -> None:
        checker, jar = make_checker(), CookieJar(RESPONDER)
        get_cookie(checker, jar, T0)
        stamped = jar.stamp(MESSAGE, T0 + 1)
        assert checker.check_mac1(stamped)
        assert checker.check_mac2(stamped, SOURCE, T0 + 1)
        for source in ELSEWHERE:
            assert not checker.check_mac2(stamped, source, T0 + 1)

    def test_mac2_is_computed_as_in_the_paper(self) -> None:
        checker, jar = make_checker(), CookieJar(RESPONDER)
        get_cookie(checker, jar, T0)
        stamped = jar.stamp(MESSAGE, T0)
        assert jar.cookie == mac(checker.secret, SOURCE)
        assert stamped[132:] == mac(jar.cookie, stamped[:132])

    def test_any_altered_byte_invalidates_mac2(self) -> None:
        checker, jar = make_checker(), CookieJar(RESPONDER)
        get_cookie(checker, jar, T0)
        stamped = jar.stamp(MESSAGE, T0)
        for position in range(148):
            altered = bytearray(stamped)
            altered[position] ^= 0x10
            assert not checker.check_mac2(altered, SOURCE, T0), position

    def test_a_stale_cookie_is_not_used(self) -> None:
        checker, jar = make_checker(), CookieJar(RESPONDER)
        get_cookie(checker, jar, T0)
        assert jar.stamp(MESSAGE, T0 + COOKIE_MAX_AGE - 1)[132:] != bytes(16)
        assert jar.stamp(MESSAGE, T0 + COOKIE_MAX_AGE)[132:] == bytes(16)

    def test_a_new_secret_invalidates_mac2(self) -> None:
        checker, jar = make_checker(), CookieJar(RESPONDER)
        get_cookie(checker, jar, T0 + 60)
        later = T0 + COOKIE_SECRET_MAX_AGE
        stamped = jar.stamp(MESSAGE, later)
        assert stamped[132:] != bytes(16)
        assert not checker.check_mac2(stamped, SOURCE, later)  # stale, even before it is replaced
        assert checker.refresh(later)
        assert not checker.check_mac2(stamped, SOURCE, later)


class TestSecret:
    def test_the_secret_changes_every_two_minutes(self) -> None:
        checker = CookieChecker(RESPONDER, random.Random(7).randbytes)
        assert checker.secret == b""
        assert checker.refresh(T0)
        first = checker.secret
        assert (len(first), checker.secret_created_at) == (32, T0)
        assert not checker.refresh(T0 + COOKIE_SECRET_MAX_AGE - 0.001)
        assert checker.secret == first
        assert checker.refresh(T0 + COOKIE_SECRET_MAX_AGE)
        assert checker.secret != first

    def test_no_mac2_is_valid_before_the_first_secret(self) -> None:
        """An empty secret is a key that every attacker knows, and just after boot it does not look old."""
        checker, jar = CookieChecker(RESPONDER, random.Random(7).randbytes), CookieJar(RESPONDER)
        just_booted = 10.0
        jar.cookie, jar.received_at = mac(b"", SOURCE), just_booted
        assert not checker.check_mac2(jar.stamp(MESSAGE, just_booted), SOURCE, just_booted)
        assert checker.refresh(just_booted)

    @pytest.mark.parametrize("now", [T0 + COOKIE_SECRET_MAX_AGE, T0 + 10_000])
    def test_a_cookie_reply_needs_a_fresh_secret(self, now: float) -> None:
        stamped = CookieJar(RESPONDER).stamp(MESSAGE, now)
        with pytest.raises(StateError, match=r"call refresh\(now\) first"):
            make_checker(T0).create_reply(stamped, SENDER_INDEX, SOURCE, now)
        with pytest.raises(StateError, match=r"call refresh\(now\) first"):
            CookieChecker(RESPONDER, random.Random(7).randbytes).create_reply(stamped, SENDER_INDEX, SOURCE, now)

    def test_a_successor_accepts_its_predecessors_cookies(self) -> None:
        predecessor, jar = make_checker(), CookieJar(RESPONDER)
        get_cookie(predecessor, jar, T0)
        successor = CookieChecker(RESPONDER, random.Random(8).randbytes)
        successor.secret, successor.secret_created_at = predecessor.secret, predecessor.secret_created_at
        assert not successor.refresh(T0 + 1)
        assert successor.check_mac2(jar.stamp(MESSAGE, T0 + 1), SOURCE, T0 + 1)


class TestReply:
    def test_a_cookie_reply_has_64_bytes_and_the_index_of_the_sender(self) -> None:
        reply = make_checker().create_reply(CookieJar(RESPONDER).stamp(MESSAGE, T0), SENDER_INDEX, SOURCE, T0)
        assert len(reply) == 64
        assert CookieReply.decode(reply).receiver_index == SENDER_INDEX

    def test_every_cookie_reply_has_its_own_nonce(self) -> None:
        checker, stamped = make_checker(), CookieJar(RESPONDER).stamp(MESSAGE, T0)
        replies = {checker.create_reply(stamped, SENDER_INDEX, SOURCE, T0) for _ in range(8)}
        assert len({CookieReply.decode(reply).nonce for reply in replies}) == 8

    def test_a_message_without_macs_gets_no_cookie_reply(self) -> None:
        with pytest.raises(DecodeError):
            make_checker().create_reply(b"", SENDER_INDEX, SOURCE, T0)

    def test_an_altered_cookie_reply_is_refused(self) -> None:
        checker, jar = make_checker(), CookieJar(RESPONDER)
        reply = checker.create_reply(jar.stamp(MESSAGE, T0), SENDER_INDEX, SOURCE, T0)
        for position in range(8, 64):
            altered = bytearray(reply)
            altered[position] ^= 0x10
            assert not jar.consume_reply(CookieReply.decode(altered), T0), position
        assert (jar.cookie, jar.received_at) == (b"", 0.0)
        assert jar.consume_reply(CookieReply.decode(reply), T0)

    def test_a_cookie_reply_to_an_earlier_message_is_refused(self) -> None:
        checker, jar = make_checker(), CookieJar(RESPONDER)
        reply = CookieReply.decode(checker.create_reply(jar.stamp(MESSAGE, T0), SENDER_INDEX, SOURCE, T0))
        jar.stamp(MESSAGE[:-1] + b"x", T0)
        assert not jar.consume_reply(reply, T0)

    def test_a_cookie_reply_without_a_message_is_refused(self) -> None:
        checker, jar = make_checker(), CookieJar(RESPONDER)
        reply = CookieReply.decode(checker.create_reply(jar.stamp(MESSAGE, T0), SENDER_INDEX, SOURCE, T0))
        assert not CookieJar(RESPONDER).consume_reply(reply, T0)

    def test_a_cookie_reply_of_another_peer_is_refused(self) -> None:
        jar = CookieJar(RESPONDER)
        other = CookieChecker(bytes(32), random.Random(7).randbytes)
        other.refresh(T0)
        reply = other.create_reply(jar.stamp(MESSAGE, T0), SENDER_INDEX, SOURCE, T0)
        assert not jar.consume_reply(CookieReply.decode(reply), T0)

    def test_a_replayed_cookie_reply_does_not_make_the_cookie_younger(self) -> None:
        checker, jar = make_checker(), CookieJar(RESPONDER)
        reply = CookieReply.decode(checker.create_reply(jar.stamp(MESSAGE, T0), SENDER_INDEX, SOURCE, T0))
        assert jar.consume_reply(reply, T0)
        assert not jar.consume_reply(reply, T0 + 100)
        assert jar.received_at == T0

    def test_a_successor_accepts_the_cookie_reply_to_its_predecessors_message(self) -> None:
        checker, predecessor, successor = make_checker(), CookieJar(RESPONDER), CookieJar(RESPONDER)
        reply = CookieReply.decode(checker.create_reply(predecessor.stamp(MESSAGE, T0), SENDER_INDEX, SOURCE, T0))
        successor.last_mac1 = predecessor.last_mac1
        assert successor.consume_reply(reply, T0 + 1)
        assert checker.check_mac2(successor.stamp(MESSAGE, T0 + 2), SOURCE, T0 + 2)
