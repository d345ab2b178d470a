"""Choosing a recipe, changing it and submitting it in a browser, with scripts and without."""

import json
import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest
import story
from playwright.sync_api import Locator, Page, Route, expect
from test_quality import _violations

from dkl.catalog import RECIPES, parse_overrides, resolve
from dkl.explain import read_recipe
from dkl.protocols import AnyProtocol
from dkl.recipes import fingerprint
from service import jobs
from service.web.recipe_form import recipe_form

NewPage = Callable[..., Page]


def field(page: Page, name: str) -> Locator:
    return page.locator(f'[id="f-{name}"]')


def control(page: Page, name: str) -> Locator:
    return page.locator(f'[name="{name}"]')


def changes(page: Page) -> dict[str, Any]:
    """What the panel says is changed."""
    found: dict[str, Any] = json.loads(page.locator("#changes").inner_text())
    return found


def test_what_is_typed_before_the_scripts_are_there_counts(site: story.Site, page: Page) -> None:
    late: list[Route] = []

    def hold(route: Route) -> None:
        late.append(route)

    def release() -> None:
        while not late:
            page.wait_for_timeout(20)
        late.pop().continue_()

    page.route(re.compile(r"htmx.*\.js"), hold)
    page.goto(f"{site.url}/submit", wait_until="commit")
    page.get_by_label("Search").fill("ikl-at-digits")
    release()
    expect(page).to_have_url(re.compile("search=ikl-at-digits"))
    expect(page.locator(".recipes tbody tr").first).to_contain_text("ikl-at-digits")

    page.goto(f"{site.url}/submit?recipe=ikl-at-digits", wait_until="commit")
    control(page, "epochs").fill("2")
    release()
    expect(page.locator("#changes")).to_contain_text('"epochs": 2')


def test_a_recipe_is_found_changed_and_submitted(empty_site: story.Site, page: Page) -> None:
    page.goto(f"{empty_site.url}/jobs")
    page.get_by_role("link", name="Submit", exact=True).click()
    page.get_by_label("Search").press_sequentially("ikl at digits linf", delay=20)
    expect(page.locator(".recipes tbody tr").first).to_contain_text("ikl-at-digits")
    expect(page.locator(".recipes tbody tr")).not_to_have_count(len(RECIPES))
    expect(page).to_have_url(re.compile(r"search=ikl(\+|%20)at(\+|%20)digits(\+|%20)linf"))
    page.get_by_role("link", name="ikl-at-digits").click()
    expect(page).to_have_url(f"{empty_site.url}/submit?recipe=ikl-at-digits")
    expect(page.locator("#outcome")).to_contain_text("Ready to submit")
    expect(page.locator("#outcome")).to_contain_text("it runs as it is named")
    page.evaluate("window.sameDocument = true")

    control(page, "epochs").fill("2")
    expect(page.locator("#changes")).to_contain_text('"epochs": 2')
    expect(field(page, "epochs").get_by_text("recipe: 30")).to_be_visible()
    expect(field(page, "objective.ikl.ce_weight").get_by_text("recipe: 4")).to_be_hidden()
    page.get_by_text("Attack", exact=True).click()
    control(page, "threat.eps").fill("8/255")
    control(page, "awp?").uncheck()
    expect(control(page, "awp.gamma")).to_be_hidden()
    expect(page.locator("#changes")).to_contain_text("awp")
    assert changes(page) == {"epochs": 2, "threat.eps": "8/255", "awp": None}
    control(page, "epochs").fill("30")
    expect(page.locator("#changes")).not_to_contain_text("epochs")
    expect(field(page, "epochs").get_by_text("recipe: 30")).to_be_hidden()
    control(page, "epochs").fill("3")
    expect(page.locator("#changes")).to_contain_text('"epochs": 3')
    command = shlex.split(page.locator("#command").inner_text().replace("\\\n", " "))
    recipe = resolve(command[2], parse_overrides(command[3 : command.index("--url")]))
    expect(page.locator("#fingerprint")).to_have_text(fingerprint(recipe))
    assert page.evaluate("window.sameDocument")

    page.get_by_role("button", name="Submit").click()
    expect(page).to_have_url(re.compile(r"/jobs/[0-9a-f]{12}$"))
    expect(page.locator("h1")).to_have_text("ikl-at-digits")
    [job] = jobs.recent(empty_site.db)
    assert (job.name, job.fingerprint) == ("ikl-at-digits", fingerprint(recipe))

    page.go_back()  # the form is filled in again, and what it comes to with it
    expect(control(page, "epochs")).to_have_value("3")
    expect(page.locator("#outcome")).to_contain_text(f"job {job.id}")
    expect(page.get_by_role("button", name="Submit")).to_be_enabled()


def test_another_kind_shows_its_own_fields(empty_site: story.Site, page: Page) -> None:
    page.goto(f"{empty_site.url}/submit?recipe=ikl-at-digits")
    expect(control(page, "objective.ikl.ce_weight")).to_be_visible()
    expect(control(page, "objective.mart.beta")).to_be_hidden()
    control(page, "objective.kind").select_option("mart")
    expect(control(page, "objective.mart.beta")).to_be_visible()
    expect(control(page, "objective.ikl.ce_weight")).to_be_hidden()
    expect(field(page, "objective").get_by_text("recipe: ikl")).to_be_visible()
    fault = field(page, "objective").locator(".fault").first
    expect(fault).to_be_empty()
    expect(page.locator("#outcome .faults")).to_contain_text("attack.loss 'ikl' needs the class prior")
    page.get_by_text("Attack", exact=True).click()
    control(page, "attack.loss").select_option("ce")
    expect(page.locator("#changes")).to_be_visible()
    assert changes(page) == {"objective.kind": "mart", "attack.loss": "ce"}


def test_faults_come_and_go_at_their_fields(empty_site: story.Site, new_page: NewPage) -> None:
    page = new_page(expected="Failed to load resource")
    page.goto(f"{empty_site.url}/submit?recipe=trades-digits")
    control(page, "epochs").fill("0")
    fault = field(page, "epochs").locator(".fault")
    expect(fault).to_have_text("must be greater than or equal to 1, found 0")
    expect(control(page, "epochs")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#outcome h2")).to_have_text("One thing to change")
    page.get_by_text("Optimiser and schedule", exact=True).click()
    control(page, "optimizer.lr").fill("-1")
    expect(page.locator("#outcome h2")).to_have_text("2 things to change")
    page.get_by_role("button", name="Submit").click()
    expect(page).to_have_url(re.compile("/submit\\?"))
    expect(control(page, "optimizer.lr")).to_be_visible()  # what is wrong is unfolded
    expect(control(page, "optimizer.lr")).to_have_value("-1")
    expect(fault).to_have_text("must be greater than or equal to 1, found 0")
    control(page, "optimizer.lr").fill("0.1")
    control(page, "epochs").fill("4")
    expect(page.locator("#outcome h2")).to_have_text("Ready to submit")
    expect(fault).to_be_empty()
    expect(page.locator("[aria-invalid]")).to_have_count(0)
    assert jobs.recent(empty_site.db) == []


def test_a_refused_form_says_so(empty_site: story.Site, new_page: NewPage) -> None:
    page = new_page(expected="Failed to load resource")
    page.goto(f"{empty_site.url}/submit?recipe=autoattack-digits-linf")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator('[id="e-model.job.job"]')).to_have_text("is missing")
    expect(page.locator("#outcome h2")).to_have_text("One thing to change")


def test_an_evaluation_is_put_together(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/submit?recipe=autoattack-digits-linf")
    expect(page.locator("#outcome h2")).to_have_text("Still to say")
    models = control(page, "model.job.job")
    model = models.locator("option", has_text="ikl-at-digits").first.get_attribute("value")
    assert model is not None
    models.select_option(model)
    page.get_by_text("Attack", exact=True).click()
    control(page, "suite.is").select_option("json")
    control(page, "suite.json").fill('[{"kind": "square", "queries": 7}')
    expect(page.locator("#outcome .faults")).to_contain_text("suite")
    control(page, "suite.json").fill('[{"kind": "square", "queries": 7}]')
    expect(page.locator("#changes")).to_contain_text("square")
    assert changes(page) == {"model.job": model, "suite": [{"kind": "square", "queries": 7, "restarts": 1}]}


@pytest.mark.long
def test_typing_goes_on_while_the_service_checks(empty_site: story.Site, page: Page) -> None:
    page.goto(f"{empty_site.url}/submit?recipe=ikl-at-digits")
    page.get_by_text("Scheduling", exact=True).click()
    webhook = control(page, "job:webhook")
    webhook.press_sequentially("https://example.org/" + "a-long-path/" * 4, delay=60)
    expect(webhook).to_have_value("https://example.org/" + "a-long-path/" * 4)
    expect(webhook).to_be_focused()
    webhook.press("Enter")  # checks, and submits nothing
    expect(page.locator("#command")).to_contain_text("a-long-path/" * 4)
    assert page.url.endswith("/submit?recipe=ikl-at-digits")
    assert jobs.recent(empty_site.db) == []


@pytest.mark.parametrize(
    "name",
    [
        *("ikl-at-digits", "las-trades-digits", "dajat-digits", "kd-digits", "autoattack-digits-linf"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in list(RECIPES)[::9]),
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n, e in RECIPES.items()
            if isinstance(e.recipe, AnyProtocol)
        ),
    ],
)
def test_what_a_browser_sends_is_the_recipe(site: story.Site, page: Page, name: str) -> None:
    needs = RECIPES[name].needs
    model = {f"{needs}.job": "0123456789ab"} if needs else {}
    page.goto(f"{site.url}/submit?recipe={name}" + "".join(f"&{path}={value}" for path, value in model.items()))
    sent: dict[str, list[str]] = {}
    for field_name, value in page.evaluate("[...new FormData(document.getElementById('draft'))]"):
        sent.setdefault(field_name, []).append(value)
    recipe = resolve(name, model)
    assert read_recipe(recipe_form(recipe.kind).read(sent)) == recipe


# --- without scripts, on a phone, in the dark -------------------------------------------------------------


def test_it_works_without_javascript(empty_site: story.Site, new_page: NewPage) -> None:
    page = new_page(java_script_enabled=False, expected="Failed to load resource")
    page.goto(f"{empty_site.url}/submit")
    page.get_by_label("Search").fill("trades digits")
    page.get_by_label("Search").press("Enter")
    page.get_by_role("link", name="trades-digits", exact=True).click()
    control(page, "objective.kind").select_option("gkl")
    expect(control(page, "objective.gkl.gamma")).to_be_visible()
    expect(control(page, "objective.trades.beta")).to_be_hidden()
    control(page, "objective.gkl.gamma").fill("2")
    page.get_by_role("button", name="Check").click()
    expect(page.locator('[id="e-objective.gkl.gamma"]')).to_contain_text("must be less than or equal to 1")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator('[id="e-objective.gkl.gamma"]')).to_contain_text("must be less than or equal to 1")
    control(page, "objective.gkl.gamma").fill("0.5")
    page.get_by_text("Then judge it").click()
    control(page, "then:autoattack-digits-linf?").check()
    control(page, "then:autoattack-digits-linf.changes").fill("images=10")
    page.get_by_role("button", name="Check").click()
    assert changes(page) == {"objective.kind": "gkl", "objective.gamma": 0.5}
    expect(page.locator("#command")).to_contain_text("--then 'autoattack-digits-linf images=10'")
    page.get_by_role("button", name="Submit").click()
    expect(page).to_have_url(re.compile(r"/jobs/[0-9a-f]{12}$"))
    assert sorted(job.name or "" for job in jobs.recent(empty_site.db)) == [
        "autoattack-digits-linf",
        "trades-digits",
    ]


@pytest.mark.parametrize(
    "scheme", [pytest.param("light", marks=pytest.mark.slow), pytest.param("dark", marks=pytest.mark.long)]
)
def test_the_pages_fit_and_are_readable_with_everything_unfolded(
    site: story.Site, new_page: NewPage, scheme: str
) -> None:
    page = new_page(color_scheme=scheme)
    for address in (
        *("/submit", "/submit?recipe=ikl-at-digits&epochs=2", "/submit?recipe=corruptions-cifar10"),
        "/submit/upload",
    ):
        page.goto(site.url + address)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
        for width in (320, 390, 768, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (address, width)
        assert _violations(page, "color-contrast") == [], address
