"""Connections to a database server: what we ask of them, and what the address asks."""

from sqlalchemy import make_url, text

from service.db import connect


def test_what_the_address_says_counts_and_the_rest_is_ours(postgres_url: str) -> None:
    asked = make_url(postgres_url).update_query_dict({"options": "-c statement_timeout=1234"})
    waits = {}
    for url in (postgres_url, asked.render_as_string(hide_password=False)):
        engine = connect(url)
        with engine.connect() as connection:
            names = ("statement_timeout", "idle_in_transaction_session_timeout")
            waits[url] = [connection.scalar(text(f"SHOW {name}")) for name in names]
        engine.dispose()
    assert list(waits.values()) == [["0", "30s"], ["1234ms", "0"]]
