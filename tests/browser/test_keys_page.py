"""Signing in with a browser, making and revoking keys, and the audit log."""

from collections.abc import Callable
from pathlib import Path

import pytest
import story
from playwright.sync_api import Page, expect
from test_quality import _violations

from service import keys
from service.callers import COMMAND_LINE
from service.keys import KeyRequest
from service.settings import Settings

NewPage = Callable[..., Page]


@pytest.fixture
def root(empty_site: story.Site, tmp_path: Path) -> str:
    """The key of an admin."""
    wanted = KeyRequest(name="root", scope="admin")
    return keys.create(empty_site.db, Settings(data_dir=tmp_path), wanted, caller=COMMAND_LINE)[1]


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()


def test_an_admin_signs_in_makes_a_key_revokes_it_and_signs_out(
    empty_site: story.Site, root: str, page: Page
) -> None:
    page.goto(f"{empty_site.url}/keys")
    expect(page).to_have_url(f"{empty_site.url}/signin?next=%2Fkeys")
    sign_in(page, root)
    expect(page).to_have_url(f"{empty_site.url}/keys")
    expect(page.locator(".who")).to_contain_text("root")
    assert page.evaluate("document.cookie") == ""  # scripts do not see the session

    page.get_by_label("Name").fill("anna")
    page.get_by_label("Running jobs at most").fill("2")
    page.get_by_role("button", name="Make the key").click()
    made = page.locator("#key").inner_text()
    assert made.startswith("dkl_")
    assert made not in page.url
    row = page.locator("tbody tr", has_text="anna")
    expect(row).to_contain_text("submit")
    page.goto(f"{empty_site.url}/keys")
    assert made not in page.content()

    row.get_by_text("Revoke", exact=True).click()
    row.get_by_role("button", name="Revoke anna").click()
    expect(row).to_contain_text("revoked")
    page.get_by_role("link", name="Audit").click()
    expect(page.locator("tbody tr").first).to_contain_text("key.revoke")
    expect(page.locator("tbody tr").first).to_contain_text("root (")

    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{empty_site.url}/")
    page.goto(f"{empty_site.url}/audit")
    expect(page).to_have_url(f"{empty_site.url}/signin?next=%2Faudit")


def test_a_wrong_key_gets_a_sentence_and_keeps_the_way_back(
    empty_site: story.Site, root: str, new_page: NewPage
) -> None:
    page = new_page(expected="Failed to load resource")
    page.goto(f"{empty_site.url}/audit")
    sign_in(page, root[:-1] + ("0" if root[-1] != "0" else "1"))
    expect(page.get_by_role("alert")).to_contain_text("typing mistake")
    sign_in(page, root)
    expect(page).to_have_url(f"{empty_site.url}/audit")


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_the_pages_fit_and_are_readable(empty_site: story.Site, root: str, new_page: NewPage, scheme: str) -> None:
    page = new_page(color_scheme=scheme, viewport={"width": 390, "height": 844})
    page.goto(f"{empty_site.url}/signin?next=/keys")
    assert _violations(page, "color-contrast") == []
    sign_in(page, root)
    page.get_by_label("Name").fill("a name that is as long as names may be " * 2)
    page.get_by_role("button", name="Make the key").click()
    for path in ("", "/keys", "/audit", "/signin"):
        if path:
            page.goto(empty_site.url + path)
        for width in (320, 390, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
        assert _violations(page, "color-contrast") == []
