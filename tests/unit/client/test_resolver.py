"""Names and addresses: what is literal, what has to be looked up, and that the loop never waits for either."""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rcode
import dns.rrset
import pytest

from oxidize.client import resolver
from oxidize.client.resolver import look_up_past_tunnel, read_upstream_dns
from oxidize.net.event_loop import Loop
from oxidize.net.resolve import literal, look_up, split
from oxidize.net.resolver import Resolver
from oxidize.protocol.endpoint import Endpoint
from tests.support.open_fds import no_leaked_fds

V4, V6 = bytes([192, 0, 2, 7]), socket.inet_pton(socket.AF_INET6, "2001:db8::7")
WAIT_SECS = 10.0  # for a thread that has nothing to wait for


# --- Literal addresses ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vpn.example.org:51820", ("vpn.example.org", 51820)),
        ("192.0.2.7:1", ("192.0.2.7", 1)),
        ("[2001:db8::7]:65535", ("2001:db8::7", 65535)),
    ],
)
def test_a_text_is_split_at_its_last_colon(text: str, expected: tuple[str, int]) -> None:
    assert split(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.7:51820", Endpoint(V4, 51820)),
        ("[2001:db8::7]:51820", Endpoint(V6, 51820)),
        ("[::ffff:192.0.2.7]:9", Endpoint(V4, 9)),
        ("[fe80::1%lo]:9", Endpoint(socket.inet_pton(socket.AF_INET6, "fe80::1"), 9, socket.if_nametoindex("lo"))),
    ],
)
def test_a_literal_address_is_an_endpoint(text: str, expected: Endpoint) -> None:
    assert literal(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "vpn.example.org:51820",
        "localhost:51820",
        "192.0.2.7",
        "",
        ":",
        ":51820",
        "192.0.2.7:",
        "192.0.2.7:0",
        "192.0.2.7:-1",
        "192.0.2.7:65536",
        "192.0.2.7:70000",
        "192.0.2.7:99999999999999999999",
        "[::1]:" + "9" * 5000,
        "192.0.2.256:51820",
        "\ud800:51820",
        "é" * 300 + ":51820",
        "x" * 300 + ":51820",
        "[fe80::1%nosuchlink]:51820",
    ],
)
def test_text_that_is_not_a_literal_address_yields_none(text: str) -> None:
    assert literal(text) is None


# --- The system's resolver ---


def found(*addresses: str, port: int = 51820) -> list[tuple[object, ...]]:
    return [
        (
            socket.AF_INET6 if ":" in address else socket.AF_INET,
            kind,
            0,
            "",
            (address, port, 0, 0) if ":" in address else (address, port),
        )
        for address in addresses
        for kind in (socket.SOCK_DGRAM, socket.SOCK_DGRAM)
    ]


def test_a_name_yields_each_address_once_in_the_resolvers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def getaddrinfo(host: str, port: int, **options: object) -> list[tuple[object, ...]]:
        asked.append((host, port))
        return found("2001:db8::7", "192.0.2.7", "::ffff:192.0.2.7")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert look_up("vpn.example.org:51820") == [Endpoint(V6, 51820), Endpoint(V4, 51820)]
    assert asked == [("vpn.example.org", 51820)]


def test_a_name_that_does_not_resolve_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(OSError, match="Temporary failure"):
        look_up("vpn.example.org:51820")


# --- Name servers ---


def test_upstream_dns_is_read_from_the_first_file_with_name_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing, empty, full, later = (tmp_path / name for name in ("missing", "empty", "full", "later"))
    empty.write_text("# nameserver 192.0.2.1\nnameserver\nsearch example.org\n")
    full.write_bytes(b"\xff\xfe\nnameserver 192.0.2.53\n nameserver\t2001:db8::53 # ours\noptions edns0\n")
    later.write_text("nameserver 198.51.100.53\n")
    monkeypatch.setattr(resolver, "_RESOLV_CONFS", (missing, empty, tmp_path, full, later))
    assert read_upstream_dns() == ["192.0.2.53", "2001:db8::53"]
    monkeypatch.setattr(resolver, "_RESOLV_CONFS", (missing, empty))
    assert read_upstream_dns() == []


# --- Queries past the tunnel ---


class NameServer:
    """A name server on the loopback; `answer` returns the reply to a query, or None for no reply."""

    def __init__(self, answer: Callable[[dns.message.Message], bytes | None]) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.asked: list[str] = []
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while (received := self.socket.recvfrom(65_536))[0]:
            query = dns.message.from_wire(received[0])
            self.asked.append(query.question[0].to_text())
            answer = self._answer(query)
            if answer is not None:
                self.socket.sendto(answer, received[1])

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ender:
            ender.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(WAIT_SECS)
        self.socket.close()


Answer = Callable[[dns.message.Message], bytes | None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], NameServer]]:
    """Return a function that starts a name server for all queries; without root, its sockets need no mark."""
    servers: list[NameServer] = []
    real_udp, real_hosts = dns.query.udp, resolver._in_hosts

    def start(answer: Answer) -> NameServer:
        server = NameServer(answer)
        servers.append(server)
        monkeypatch.setattr(dns.query, "udp", partial(real_udp, port=server.port))
        return server

    monkeypatch.setattr(resolver, "_in_hosts", lambda host: [] if host.endswith(".example") else real_hosts(host))
    if os.geteuid() != 0:
        monkeypatch.setattr(socket, "SO_MARK", socket.SO_PRIORITY)
    yield start
    for server in servers:
        server.close()


def record(name: str, ttl: str, *rest: str) -> dns.rrset.RRset:
    return dns.rrset.from_text(name, int(ttl), *rest)


def answering(*texts: str) -> Answer:
    """Answer with these records, of whatever kind."""

    def answer(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.answer = [record(*text.split()) for text in texts]
        return response.to_wire()

    return answer


def test_a_query_asks_for_both_kinds_of_address_and_ignores_others(
    serve: Callable[[Answer], NameServer],
) -> None:
    server = serve(
        answering(
            "vpn.example. 60 IN CNAME other.example.",
            "other.example. 60 IN A 192.0.2.7",
            "other.example. 60 IN AAAA 2001:db8::7",
            "other.example. 60 IN TXT hello",
        )
    )
    assert look_up_past_tunnel("vpn.example:51820", 1, ["127.0.0.1"]) == [Endpoint(V6, 51820), Endpoint(V4, 51820)]
    assert server.asked == ["vpn.example. IN AAAA", "vpn.example. IN A"]


@pytest.mark.root
def test_queries_carry_the_mark(serve: Callable[[Answer], NameServer], monkeypatch: pytest.MonkeyPatch) -> None:
    serve(answering("vpn.example. 60 IN A 192.0.2.7"))
    marks = []
    udp = dns.query.udp

    def noting(*args: Any, **options: Any) -> dns.message.Message:
        marks.append(options["sock"].getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
        return udp(*args, **options)

    monkeypatch.setattr(dns.query, "udp", noting)
    assert look_up_past_tunnel("vpn.example:51820", 51820, ["127.0.0.1"]) == [Endpoint(V4, 51820)]
    assert marks == [51820, 51820]


def refusing(query: dns.message.Message) -> bytes:
    response = dns.message.make_response(query)
    response.set_rcode(dns.rcode.SERVFAIL)
    return response.to_wire()


def answering_others(query: dns.message.Message) -> bytes:
    return dns.message.make_response(dns.message.make_query("evil.example", "A")).to_wire()


def answering_half(query: dns.message.Message) -> bytes:
    whole = answering("vpn.example. 60 IN A 192.0.2.66")(query)
    assert whole is not None
    return whole[:-2]


def answering_in_circles(query: dns.message.Message) -> bytes:
    return query.id.to_bytes(2, "big") + b"\x81\x80\0\0\0\1\0\0\0\0" + b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\1\2\3\4"


@pytest.mark.parametrize(
    "answer",
    [
        refusing,
        answering_others,
        answering_half,
        answering_in_circles,
        lambda query: b"",
        lambda query: b"\xff" * 600,
        lambda query: query.to_wire(),
        answering(),
    ],
    ids=["servfail", "other name", "cut", "circles", "empty", "junk", "echo", "no records"],
)
def test_a_name_without_a_valid_answer_is_left_to_the_system(
    answer: Answer, serve: Callable[[Answer], NameServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "LOOKUP_SECS_MAX", 0.4)
    serve(answer)
    monkeypatch.setattr(resolver, "look_up", lambda text: [Endpoint(V4, 1)])
    assert look_up_past_tunnel("vpn.example:51820", 1, ["127.0.0.1"]) == [Endpoint(V4, 1)]


@pytest.mark.parametrize("broken", ["", "none", "192.0.2.256", "fe80::1%nosuchlink", "::1::", "\ud800"])
def test_a_malformed_name_server_is_skipped(broken: str, serve: Callable[[Answer], NameServer]) -> None:
    serve(answering("vpn.example. 60 IN A 192.0.2.7"))
    assert look_up_past_tunnel("vpn.example:51820", 1, [broken, "127.0.0.1"]) == [Endpoint(V4, 51820)]


def test_a_name_that_dns_cannot_encode_is_left_to_the_system(serve: Callable[[Answer], NameServer]) -> None:
    serve(answering())
    with pytest.raises((OSError, UnicodeError)):
        look_up_past_tunnel("x" * 70 + ".example:51820", 1, ["127.0.0.1"])


def test_the_hosts_file_takes_precedence_over_dns(serve: Callable[[Answer], NameServer]) -> None:
    server = serve(answering("localhost. 60 IN A 192.0.2.66"))
    endpoints = look_up_past_tunnel("localhost:51820", 1, ["127.0.0.1"])
    assert {endpoint.address for endpoint in endpoints} <= {bytes([127, 0, 0, 1]), bytes(15) + b"\1"}
    assert endpoints
    assert server.asked == []


# --- A resolver in a loop ---


class FakeLoop(Loop):
    """Calls back when the test tells it to."""

    def __init__(self) -> None:
        self.callbacks: dict[int, Callable[[], None]] = {}

    def register(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        assert fd not in self.callbacks
        self.callbacks[fd] = callback

    def unregister(self, fd: int) -> None:
        del self.callbacks[fd]

    def run(self) -> None:
        """Wait for the end of the current lookup, as the loop would."""
        ((fd, callback),) = self.callbacks.items()
        assert os.read(fd, 1) == b""
        callback()


class Lookups:
    """A lookup whose outcome waits until the test releases it."""

    def __init__(self) -> None:
        self.outcome: list[Endpoint] | Exception = [Endpoint(V4, 51820)]
        self.asked: list[str] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, text: str) -> list[Endpoint]:
        self.asked.append(text)
        assert self.go.wait(WAIT_SECS)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


Parts = tuple[FakeLoop, Lookups, list[list[Endpoint] | OSError], Resolver]


@pytest.fixture
def parts() -> Iterator[Parts]:
    loop, lookups = FakeLoop(), Lookups()
    outcomes: list[list[Endpoint] | OSError] = []
    yield loop, lookups, outcomes, Resolver("vpn.example:51820", lookups, loop, outcomes.append)
    lookups.go.set()
    for thread in threads():  # a thread may still end after its report, and the next test counts threads
        thread.join(WAIT_SECS)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "resolver"]


def test_the_outcome_of_a_lookup_is_reported_from_the_loop(parts: Parts) -> None:
    loop, lookups, outcomes, resolver = parts
    resolver.ask()
    loop.run()
    assert outcomes == [[Endpoint(V4, 51820)]]
    assert lookups.asked == ["vpn.example:51820"]
    assert loop.callbacks == {}
    resolver.ask()
    loop.run()
    assert len(outcomes) == 2


def test_a_resolver_runs_one_lookup_at_a_time(parts: Parts) -> None:
    loop, lookups, outcomes, resolver = parts
    lookups.go.clear()
    for _ in range(10):
        resolver.ask()
    assert len(threads()) == 1
    lookups.go.set()
    loop.run()
    assert len(lookups.asked) == len(outcomes) == 1


def test_a_lookup_is_not_reported_after_a_stop(parts: Parts) -> None:
    loop, lookups, outcomes, resolver = parts
    lookups.go.clear()
    resolver.ask()
    (thread,) = threads()
    resolver.stop()
    resolver.stop()
    lookups.go.set()
    thread.join(WAIT_SECS)
    assert (outcomes, loop.callbacks) == ([], {})
    resolver.ask()
    loop.run()
    assert outcomes == [[Endpoint(V4, 51820)]]


@pytest.mark.parametrize(
    "error",
    [socket.gaierror(socket.EAI_NONAME, "not known"), TimeoutError("late"), UnicodeError("label too long")],
)
def test_an_error_of_a_lookup_reaches_the_loop_as_an_os_error(parts: Parts, error: Exception) -> None:
    loop, lookups, outcomes, resolver = parts
    lookups.outcome = error
    resolver.ask()
    loop.run()
    (outcome,) = outcomes
    assert isinstance(outcome, OSError)
    assert str(error) in str(outcome)


def test_a_bug_in_a_lookup_ends_the_lookup_and_not_the_process(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, lookups, outcomes, resolver = parts
    reported: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    lookups.outcome = KeyError("a bug")
    lookups.go.clear()
    resolver.ask()
    (thread,) = threads()
    lookups.go.set()
    loop.run()
    thread.join(WAIT_SECS)
    assert isinstance(outcomes[0], OSError)
    assert [args.exc_type for args in reported] == [KeyError]


@pytest.mark.parametrize("refused", ["pipe", "thread", "room in the loop"])
def test_a_shortage_of_threads_pipes_or_room_fails_only_the_lookup(
    parts: Parts, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _, outcomes, resolver = parts

    def no_pipe(flags: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, no_leaked_fds():
        if refused == "pipe":
            patch.setattr(os, "pipe2", no_pipe)
        elif refused == "room in the loop":
            patch.setattr(loop, "register", no_room)
        else:
            patch.setattr(threading.Thread, "start", no_thread)
        resolver.ask()
        if refused == "thread":
            loop.run()
    assert loop.callbacks == {}
    assert [type(outcome) for outcome in outcomes] == [OSError]
    resolver.ask()
    loop.run()
    assert outcomes[1] == [Endpoint(V4, 51820)]
