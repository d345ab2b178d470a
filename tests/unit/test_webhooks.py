"""Webhooks arrive, signed, once they can; and never where they should not go."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path

import pytest
from receiver import NAME, Receiver, answering, receiving
from sqlalchemy import Engine, update
from standardwebhooks import Webhook, WebhookVerificationError

from service import outbound
from service.db import clock, now, reading, writing
from service.outbound import Network, PostError, check_url, is_public, post
from service.settings import Settings
from service.tables import Delivery, Job
from service.webhooks import RETRY_SECONDS, deliver_due, webhook_secret


def network(receiver: Receiver, addresses: Iterable[str] = ("127.0.0.1",)) -> Network:
    """Where the receiver's name leads to this machine, and that is allowed."""
    return Network(
        resolve=lambda host, port: addresses,
        allows=lambda address: True,
        context=ssl.create_default_context(cafile=receiver.certificate),
    )


def due(db: Engine, url: str, number: int = 1, **fields: object) -> str:
    """A job that has ended, with a webhook that is due; the webhook's id."""
    with writing(db) as session:
        at = clock(session)
        job = Job(
            id=f"{number:012x}",
            kind="train",
            name="ikl-at-digits",
            recipe={},
            fingerprint="0" * 64,
            dataset="digits",
            status="succeeded",
            clean_accuracy=0.9,
            webhook=url,
            created_at=at - 60,
            finished_at=at,
        )
        session.add(job)
        session.flush()
        delivery = Delivery(id=f"{number:032x}", job_id=job.id, url=url, created_at=at, **{"due_at": at, **fields})
        session.add(delivery)
        return delivery.id


def row(db: Engine, delivery_id: str) -> Delivery:
    with reading(db) as session:
        return session.get_one(Delivery, delivery_id)


def make_due(db: Engine) -> None:
    with writing(db) as session:
        session.execute(update(Delivery).values(due_at=now()))


# --- arriving ---------------------------------------------------------------------------------------------


def test_a_webhook_arrives_with_a_signature_that_its_library_accepts(
    db: Engine, settings: Settings, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"url": "https://bench.example.org/"})
    with receiving(tmp_path, answering("204 No Content")) as receiver:
        delivery_id = due(db, receiver.url)
        assert deliver_due(db, settings, network(receiver)) == 1
        assert deliver_due(db, settings, network(receiver)) == 0
    (got,) = receiver.got
    assert got.line == "POST /hooks/T0pS3cret?of=dkl HTTP/1.1"
    assert got.headers["host"] == f"{NAME}:{receiver.port}"
    assert got.headers["webhook-id"] == delivery_id
    assert receiver.asked_for == [NAME]
    document = Webhook(webhook_secret(settings, None)).verify(got.body, got.headers)
    assert document["type"] == "job.succeeded"
    assert document["data"]["id"] == "000000000001"
    assert document["data"]["clean_accuracy"] == 0.9
    assert document["data"]["url"] == "https://bench.example.org/jobs/000000000001"
    with pytest.raises(WebhookVerificationError):
        Webhook(webhook_secret(settings, "0a1b2c3d4e5f")).verify(got.body, got.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(webhook_secret(settings, None)).verify(got.body.replace("0.9", "1.0"), got.headers)
    told = row(db, delivery_id)
    assert (told.tries, told.due_at, told.error) == (1, None, None)
    assert told.delivered_at is not None


def test_what_fails_is_tried_again_and_given_up_after_a_day(
    db: Engine, settings: Settings, tmp_path: Path
) -> None:
    with receiving(tmp_path, answering("500 Internal Server Error")) as receiver:
        delivery_id = due(db, receiver.url)
        for tries, pause in enumerate(RETRY_SECONDS, start=1):
            assert deliver_due(db, settings, network(receiver)) == 1
            told = row(db, delivery_id)
            assert (told.tries, told.error) == (tries, f"{NAME} answered 500")
            with reading(db) as session:
                assert told.due_at == pytest.approx(clock(session) + pause, abs=5)
            assert deliver_due(db, settings, network(receiver)) == 0  # not yet
            make_due(db)
        assert deliver_due(db, settings, network(receiver)) == 1
    told = row(db, delivery_id)
    assert (told.tries, told.due_at, told.delivered_at) == (8, None, None)
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    assert 20 * 3600 < sum(RETRY_SECONDS) < 24 * 3600


def test_a_later_try_arrives(db: Engine, settings: Settings, tmp_path: Path) -> None:
    statuses = ["503 Service Unavailable", "200 OK"]

    def talk(connection: ssl.SSLSocket) -> None:
        answering(statuses.pop(0))(connection)

    with receiving(tmp_path, talk) as receiver:
        delivery_id = due(db, receiver.url)
        deliver_due(db, settings, network(receiver))
        make_due(db)
        deliver_due(db, settings, network(receiver))
    told = row(db, delivery_id)
    assert (told.tries, told.due_at, told.error) == (2, None, None)
    assert told.delivered_at is not None


def test_several_processes_deliver_each_once(db: Engine, settings: Settings, tmp_path: Path) -> None:
    with receiving(tmp_path, answering("200 OK")) as receiver:
        for number in range(1, 13):
            due(db, receiver.url, number)
        ours = network(receiver)
        threads = [threading.Thread(target=deliver_due, args=(db, settings, ours)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while deliver_due(db, settings, ours):
            pass
    assert sorted(got.headers["webhook-id"] for got in receiver.got) == [f"{n:032x}" for n in range(1, 13)]


def test_one_that_hangs_does_not_hold_up_the_others(
    db: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "SECONDS", 0.8)

    def talk(connection: ssl.SSLSocket) -> None:
        if json.loads(receiver.got[-1].body)["data"]["id"].endswith("1"):
            time.sleep(2)
        answering("200 OK")(connection)

    with receiving(tmp_path, talk) as receiver:
        hanging, other = due(db, receiver.url, 1), due(db, receiver.url, 2)
        deliver_due(db, settings, network(receiver))
        assert row(db, other).delivered_at is not None
        assert "did not answer within 0.8 s" in str(row(db, hanging).error)


def test_the_error_keeps_the_receivers_secret(db: Engine, settings: Settings, tmp_path: Path) -> None:
    with receiving(tmp_path, answering("404 Not Found")) as receiver:
        delivery_id = due(db, receiver.url)
        deliver_due(db, settings, network(receiver))
    assert "T0pS3cret" not in str(row(db, delivery_id).error)


# --- hostile receivers ------------------------------------------------------------------------------------


def drip(connection: ssl.SSLSocket) -> None:
    """A header without an end, one byte at a time: no single read takes long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(100):
        time.sleep(0.05)
        connection.sendall(b"x")


def flood(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X: " + b"x" * 4000 + b"\r\n")


@pytest.mark.parametrize(
    ("talk", "says"),
    [
        (answering("302 Found", "Location: https://169.254.169.254/latest"), "answered 302; redirects are not"),
        (answering("307 Temporary Redirect", "Location: https://receiver.example.org/"), "redirects are not"),
        (drip, "did not answer within 0.6 s"),
        (lambda connection: time.sleep(1), "did not answer within 0.6 s"),
        (flood, "could not be reached"),
        (lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "could not be reached"),
        (lambda connection: None, "could not be reached"),
        (
            lambda connection: connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 2000),
            "could not be reached",
        ),
    ],
)
def test_a_strange_answer_is_a_failed_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talk: Callable[[ssl.SSLSocket], None], says: str
) -> None:
    monkeypatch.setattr(outbound, "SECONDS", 0.6)
    began = time.monotonic()
    with receiving(tmp_path, talk) as receiver:
        with pytest.raises(PostError, match=says):
            post(receiver.url, {}, b"{}", network(receiver))
        assert time.monotonic() - began < 2
    assert len(receiver.got) == 1


def test_a_body_without_an_end_is_not_read(tmp_path: Path) -> None:
    def pour(connection: ssl.SSLSocket) -> None:
        answering("200 OK", "Content-Length: 1000000000000")(connection)
        while True:
            connection.sendall(b"x" * 65536)

    began = time.monotonic()
    with receiving(tmp_path, pour) as receiver:
        post(receiver.url, {}, b"{}", network(receiver))
    assert time.monotonic() - began < 2


def test_hints_before_the_status_are_passed_over(tmp_path: Path) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
    with receiving(tmp_path, lambda connection: connection.sendall(early)) as receiver:
        post(receiver.url, {}, b"{}", network(receiver))


def test_a_certificate_of_another_name_or_of_nobody_is_refused(tmp_path: Path) -> None:
    with receiving(tmp_path, answering("200 OK")) as receiver:
        other = receiver.url.replace(NAME, "other.example.org")
        with pytest.raises(PostError, match=r"certificate of other\.example\.org is not valid"):
            post(other, {}, b"{}", network(receiver))
        unknown = Network(lambda host, port: ["127.0.0.1"], lambda address: True, ssl.create_default_context())
        with pytest.raises(PostError, match="self-signed certificate"):
            post(receiver.url, {}, b"{}", unknown)
    assert receiver.got == []


def test_proxies_of_the_environment_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with receiving(tmp_path, answering("200 OK")) as receiver:
        post(receiver.url, {}, b"{}", network(receiver))
    assert len(receiver.got) == 1


# --- where it may go --------------------------------------------------------------------------------------


def test_a_name_that_changes_its_mind_is_believed_once(tmp_path: Path) -> None:
    """DNS rebinding: whatever is resolved is checked, and the connection goes there and nowhere else."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    checked = []

    def allows(address: object) -> bool:
        checked.append(str(address))
        return True

    with receiving(tmp_path, answering("200 OK")) as receiver:
        context = ssl.create_default_context(cafile=receiver.certificate)
        post(receiver.url, {}, b"{}", Network(lambda host, port: answers.pop(0), allows, context))
    assert (checked, len(answers), len(receiver.got)) == (["127.0.0.1"], 1, 1)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["::ffff:127.0.0.1"], []])
def test_a_name_that_leads_home_is_refused_even_beside_a_public_one(tmp_path: Path, addresses: list[str]) -> None:
    with receiving(tmp_path, answering("200 OK")) as receiver:
        context = ssl.create_default_context(cafile=receiver.certificate)
        with pytest.raises(PostError, match="leads to"):
            post(receiver.url, {}, b"{}", Network(lambda host, port: addresses, is_public, context))
    assert receiver.asked_for == []


def test_the_second_address_is_tried_where_the_first_does_not_answer(tmp_path: Path) -> None:
    with receiving(tmp_path, answering("200 OK")) as receiver:
        post(receiver.url, {}, b"{}", network(receiver, ["127.0.0.9", "127.0.0.1"]))
    assert len(receiver.got) == 1


NOT_PUBLIC = """
    127.0.0.1 127.255.255.254 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1
    192.0.0.170 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 192.88.99.1 224.0.0.1 239.255.255.250 240.0.0.1
    255.255.255.255 :: ::1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::808:808
    64:ff9b:1::1 fe80::1 fe80::1%eth0 fc00::1 fd12:3456::1 ff02::1 2001::1 2001:0:7f00:1::1 2001:db8::1
    2002:7f00:1:: 2002:c0a8:101::1 3fff::1 100::1 5f00::1 fec0::1
"""


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_these_are_not_the_public_internet(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:2800:21f::1", "2a00:1450:4001:81b::200e"])
def test_these_are_the_public_internet(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/hook",
        "https://example.org",
        "https://hooks.example.org.:8443/a?b=c&d=%20",
        "https://93.184.215.14/hook",
        "https://[2606:2800:21f::1]:444/hook",
        "https://xn--bcher-kva.example/hook",
    ],
)
def test_an_address_that_is_taken_in(url: str) -> None:
    assert check_url(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://example.org/hook", "must begin with https://"),
        ("ftp://example.org/hook", "must begin with https://"),
        ("example.org/hook", "must begin with https://"),
        ("https:///hook", "must begin with https://"),
        ("https://", "must begin with https://"),
        ("https://anna:hunter2@example.org/", "no user, password or fragment"),
        ("https://example.org@127.0.0.1/", "no user, password or fragment"),
        ("https://example.org/#x", "no user, password or fragment"),
        ("https://localhost/", "full name"),
        ("https://redis:6379/", "full name"),
        ("https://2130706433/", "full name"),
        ("https://127.1/", "full name"),
        ("https://0x7f.0.0.1/", "full name"),
        ("https://0177.0.0.1/", "full name"),
        ("https://.example.org/", "full name"),
        ("https://exa mple.org/", "printable ASCII"),
        ("https://example.org/\r\nX: y", "printable ASCII"),
        ("https://b\u00fccher.example/", "printable ASCII"),
        ("https://example.org/" + "x" * 2000, "at most 2000 characters"),
        ("https://127.0.0.1/", "public internet only"),
        ("https://[::1]/", "public internet only"),
        ("https://[::ffff:10.0.0.1]/", "public internet only"),
        ("https://169.254.169.254/latest/meta-data", "public internet only"),
        ("https://example.org:99999/", "must be a URL"),
        ("https://[::1/", "must be a URL"),
    ],
)
def test_an_address_that_is_refused(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_url(url)
