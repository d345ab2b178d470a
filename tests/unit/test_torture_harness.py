"""The instruments of `make torture`: what they would see if something were wrong."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from processes import wait_until
from proxy import Proxy
from torture.witnesses import differences, essence, lost

WRITTEN = {3: {"status": "queued"}, 5: {"epoch": 1}, 9: {"epoch": 2}}


def told(*ids: int) -> list[tuple[int, dict[str, object]]]:
    return [(number, {**WRITTEN.get(number, {}), "attempt": 1, "at": 0.5}) for number in ids]


@pytest.mark.parametrize(
    ("ids", "faults"),
    [
        ((3, 5, 9), []),
        ((3, 9), ["event 5 was never told"]),
        ((3, 5, 5, 9), ["event 5 was told after 5"]),
        ((3, 9, 5), ["event 5 was told after 9"]),
        ((3, 5, 9, 12), ["event 12 was told and is not in the ledger"]),
    ],
)
def test_lost_repeated_and_disordered_events_are_seen(ids: tuple[int, ...], faults: list[str]) -> None:
    assert lost(told(*ids), WRITTEN) == faults


def test_an_event_that_was_told_otherwise_is_seen() -> None:
    events = [*told(3, 5), (9, {"epoch": 7, "attempt": 1, "at": 0.5})]
    assert lost(events, WRITTEN) == ["event 9 was told otherwise than it is in the ledger"]


def test_results_are_compared_without_what_is_of_the_run() -> None:
    one = {"accuracy": 0.5, "seconds": 3.0, "stages": [{"name": "clean", "seconds": 1.0}], "model": {"job": "aa"}}
    other = {
        "accuracy": 0.5,
        "seconds": 9.0,
        "stages": [{"name": "clean", "seconds": 2.0}],
        "model": {"job": "bb"},
    }
    assert differences(essence(one, {"aa": "training 1"}), essence(other, {"bb": "training 1"})) == []
    other["stages"] = [{"name": "square", "seconds": 2.0}]
    assert differences(essence(one, {}), essence({**other, "accuracy": 0.25}, {"bb": "aa"})) == [
        "accuracy: 0.5 became 0.25",
        "stages[0].name: 'clean' became 'square'",
    ]


@pytest.fixture
def echo() -> Iterator[int]:
    """A port that answers with what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection:
                while piece := connection.recv(1024):
                    connection.sendall(piece)

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


def test_the_proxy_passes_delays_holds_back_and_cuts(echo: int) -> None:
    with Proxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        client.sendall(b"one")
        assert client.recv(1024) == b"one"

        proxy.delay, asked = 0.1, time.monotonic()
        client.sendall(b"two")
        assert client.recv(1024) == b"two"
        assert time.monotonic() - asked >= 0.2  # there and back
        proxy.delay = 0

        proxy.holding = True
        client.sendall(b"three")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1024)
        proxy.holding = False
        client.settimeout(5)
        assert client.recv(1024) == b"three"

        assert proxy.cut() == 2
        wait_until(lambda: _ended(client), 5, "the end of the connection")


def test_the_proxy_refuses_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = int(gone.getsockname()[1])
    with Proxy(port) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        wait_until(lambda: _ended(client), 5, "the proxy to give up")


def _ended(client: socket.socket) -> bool:
    try:
        return client.recv(1024) == b""
    except ConnectionResetError:
        return True
