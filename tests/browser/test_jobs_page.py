"""The list of jobs and the page of one job in a browser, live."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import story
from playwright.sync_api import Locator, Page, expect

from dkl.events import Finished
from dkl.protocols import Evaluate
from dkl.recipes import Train
from service import claims, jobs, registry
from service.callers import ANONYMOUS
from service.db import writing
from service.moves import TERMINAL
from service.registry import Description
from service.tables import Job

NewPage = Callable[..., Page]
NONE = "\N{EN DASH}"
RECIPE = story.resolve("ikl-at-digits", {"epochs": 10, "seed": 7})
assert isinstance(RECIPE, Train)
WORKER = Description("gpu-box:4711", "gpu-box", 4711, "NVIDIA H200", 1, 139.8, 1, {}, ("gpu",))
DONE = Finished(result=story.training_result(RECIPE, 0.93))


# --- the list ---------------------------------------------------------------------------------------------


@pytest.mark.long
def test_jobs_list_follows_the_ledger(site: story.Site, page: Page, running: tuple[Job, claims.Claim]) -> None:
    job, claim = running
    waiting = jobs.create(site.db, story.resolve("autoattack-digits-linf", {"model.job": job.id}))
    page.goto(f"{site.url}/jobs")
    row, waits = (page.locator(f"tr[data-job='{known.id}']") for known in (job, waiting))
    expect(row.locator(".chip")).to_have_text("running")
    expect(row).to_contain_text("20 % · epoch 3 of 10 · 10 s left")
    expect(row.locator("progress")).to_have_js_property("value", 0.2)
    expect(row.locator("time")).to_have_attribute("title", re.compile(r"^\d{4}-\d\d-\d\d .* UTC$"))
    expect(waits).to_contain_text("waits for ikl-at-digits")
    claims.append(site.db, claim, story.progress(5, 10, "epoch 6 of 10"))
    expect(row).to_contain_text("50 % · epoch 6 of 10")
    claims.finish(site.db, claim, DONE)
    expect(row.locator(".chip")).to_have_text("succeeded")
    expect(row).to_contain_text("93.00")
    expect(waits).to_contain_text("no worker is alive")
    jobs.cancel(site.db, waiting.id)
    expect(waits.locator(".chip")).to_have_text("canceled")


@pytest.fixture
def crowded(empty_site: story.Site) -> story.Site:
    """More jobs than a page has, of all kinds and in most states."""
    db = empty_site.db
    model = story.trained(db, "natural-digits", epochs=2)
    story.judged(db, model, robust=0.07)
    for seed in range(3):
        broken = jobs.create(db, story.resolve("natural-digits", {"seed": seed}), name="natural-digits")
        claims.fail(db, story.start(db, broken), "loss is nan at epoch 12, batch 40; " + "try a smaller one " * 20)
    story.start(db, jobs.create(db, RECIPE, name="ikl-at-digits"))
    for seed in range(50):
        jobs.create(db, story.resolve("ikl-at-digits", {"seed": seed}), name=f"waiting-{seed}")
    return empty_site


def names(page: Page) -> list[str]:
    return page.locator("tbody th.model > a").all_inner_texts()


def test_filters_are_addresses_and_the_back_button_works(
    crowded: story.Site, page: Page, new_page: NewPage
) -> None:
    page.goto(f"{crowded.url}/jobs")
    page.evaluate("document.querySelector('header.top').dataset.untouched = 'yes'")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(50)
    expect(page.get_by_role("navigation", name="Status")).to_contain_text("all 56")
    page.get_by_role("link", name="failed 3").click()
    expect(rows).to_have_count(3)
    expect(page).to_have_url(f"{crowded.url}/jobs?status=failed")
    expect(rows.first).to_contain_text("loss is nan at epoch 12")
    page.get_by_role("link", name="all 56").click()
    expect(rows).to_have_count(50)
    page.get_by_label("Kind").select_option("evaluation")
    expect(rows).to_have_count(1)
    assert names(page) == ["autoattack-digits-linf"]
    expect(page.get_by_text("1 job", exact=True)).to_be_visible()
    assert page.locator("header.top").get_attribute("data-untouched") == "yes"
    kept = page.url
    page.go_back()
    expect(rows).to_have_count(50)
    page.go_back()
    expect(rows).to_have_count(3)
    expect(page.locator(".tabs [aria-current]")).to_contain_text("failed")
    other = new_page()
    other.goto(kept)
    expect(other.get_by_label("Kind")).to_have_value("evaluate")
    assert names(other) == ["autoattack-digits-linf"]


def test_searching_while_typing_keeps_the_cursor_and_the_filter(crowded: story.Site, page: Page) -> None:
    page.goto(f"{crowded.url}/jobs?status=queued")
    box = page.get_by_role("searchbox")
    box.press_sequentially("waiting-4", delay=40)
    expect(page.locator("tbody tr")).to_have_count(11)
    expect(page).to_have_url(re.compile("status=queued&search=waiting-4$"))
    expect(box).to_be_focused()
    box.press_sequentially("<b>")
    expect(page.get_by_text("No job matches “waiting-4<b>”")).to_be_visible()
    page.get_by_role("link", name="Show all jobs").click()
    expect(page.locator("tbody tr")).to_have_count(50)
    expect(box).to_have_value("")
    [known] = [job for job in jobs.recent(crowded.db) if job.robust_accuracy is not None]
    box.fill(known.id)
    expect(page.locator("tbody tr")).to_have_count(1)


@pytest.mark.parametrize("javascript", [True, False])
def test_older_jobs_are_a_page_further(crowded: story.Site, new_page: NewPage, javascript: bool) -> None:
    page = new_page(java_script_enabled=javascript)
    page.goto(f"{crowded.url}/jobs")
    newest = names(page)
    assert newest[0] == "waiting-49"
    page.get_by_role("link", name="Older").click()
    expect(page.locator("tbody tr")).to_have_count(6)
    expect(page).to_have_url(f"{crowded.url}/jobs?page=2")
    assert names(page)[-1] == "natural-digits"
    page.get_by_role("link", name="Newer").click()
    expect(page.locator("tbody tr")).to_have_count(50)
    assert names(page) == newest


def test_without_javascript_the_list_is_narrowed_by_buttons(crowded: story.Site, new_page: NewPage) -> None:
    page = new_page(java_script_enabled=False)
    page.goto(f"{crowded.url}/jobs?status=failed")
    page.get_by_label("Kind").select_option("training")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("tbody tr")).to_have_count(3)
    page.get_by_role("searchbox").fill("nothing like it")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("No job matches")).to_be_visible()
    assert "status=failed" in page.url
    assert "kind=train" in page.url


def test_rows_say_place_worker_and_how_long(crowded: story.Site, page: Page) -> None:
    registry.arrive(crowded.db, WORKER)
    page.goto(f"{crowded.url}/jobs?status=queued")
    assert page.locator("tbody .status small").first.inner_text() == "50th in gpu"
    assert page.locator("tbody .status small").last.inner_text() == "1st in gpu"
    page.goto(f"{crowded.url}/jobs?status=running")
    row = page.locator("tbody tr")
    expect(row.locator(".worker")).to_have_text("gpu-box:4711")
    expect(row.locator(".kind")).to_have_text("training")
    page.goto(f"{crowded.url}/jobs?status=succeeded&kind=evaluate")
    expect(row.locator("td.n")).to_have_text([re.compile("95.00"), re.compile("7.00")])
    expect(row.locator(".date")).to_contain_text(re.compile(r"ago|just now"))
    expect(row.locator(".date small")).to_contain_text(re.compile(r"^took \d"))


def test_the_list_fits_a_narrow_screen(crowded: story.Site, new_page: NewPage) -> None:
    page = new_page(viewport={"width": 390, "height": 800})
    for query in ("", "?status=failed", "?search=nothing", "?page=2"):
        page.goto(f"{crowded.url}/jobs{query}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, query


def test_no_jobs_yet(empty_site: story.Site, page: Page) -> None:
    page.goto(f"{empty_site.url}/jobs")
    expect(page.get_by_text("dklbench submit ikl-at-digits")).to_be_visible()
    page.get_by_text("or with curl").click()
    expect(page.get_by_text(f"curl {empty_site.url}/api/v1/jobs")).to_be_visible()


# --- one job, live ----------------------------------------------------------------------------------------


def curve(page: Page, *, epochs: int) -> Locator:
    return page.get_by_role("img", name=f"Loss and accuracies of {epochs} epochs")


def test_training_is_followed_without_reloading(
    site: story.Site, page: Page, running: tuple[Job, claims.Claim]
) -> None:
    job, claim = running
    page.goto(f"{site.url}/jobs/{job.id}")
    page.evaluate("window.sameDocument = true")
    state, doing = page.locator("#state"), page.locator("#doing")
    expect(state).to_have_text("running")
    expect(doing).to_contain_text("20 % · epoch 3 of 10 · 10 s left")
    expect(doing).to_contain_text("5,120 images per second on gpu-box:4711")
    expect(page.locator("#curve canvas")).to_have_count(4)
    expect(curve(page, epochs=2)).to_be_visible()
    page.get_by_text("Table of epochs").click()
    expect(page.locator("#epochs tr")).to_have_count(2)

    before = page.locator("#curve canvas").first.screenshot()
    for number in range(3, 9):
        claims.append(site.db, claim, story.epoch(number, 10))
    claims.append(site.db, claim, story.progress(8, 10, "epoch 9 of 10"))
    expect(doing).to_contain_text("80 % · epoch 9 of 10")
    expect(doing.locator("progress")).to_have_js_property("value", 0.8)
    expect(page.locator("#epochs tr")).to_have_count(8)
    expect(curve(page, epochs=8)).to_be_visible()
    assert page.locator("#curve canvas").first.screenshot() != before

    claims.finish(site.db, claim, DONE)
    expect(state.locator(".chip")).to_have_text("succeeded")
    expect(page.locator("#result")).to_contain_text("93.00 %")
    expect(page.locator("#history li").last).to_contain_text("succeeded by gpu-box:4711")
    expect(page.locator("#epochs")).to_be_visible()  # what was opened stays open
    expect(page.get_by_role("button", name="Run again")).to_be_visible()
    expect(page.get_by_text("Cancel this job")).to_have_count(0)
    expect(page).to_have_title("ikl-at-digits · succeeded · dkl-bench")
    assert page.evaluate("window.sameDocument")


def test_a_finished_training_shows_its_curve(site: story.Site, page: Page) -> None:
    job = next(job for job in jobs.recent(site.db) if job.name == "natural-digits" and job.result)
    page.goto(f"{site.url}/jobs/{job.id}")
    expect(curve(page, epochs=15)).to_be_visible()
    expect(page.locator("#curve canvas")).to_have_count(4)
    assert lines(page) == ["epoch", "clean accuracy", "loss", "learning rate", "images per second"]
    expect(page.locator("#children")).to_contain_text("robust 7.00 %")
    assert headings(page) == ["Epoch", "Loss", "Clean, %", "lr", "Images/s", "Time"]
    expect(page.locator("#result")).to_contain_text("weights of epoch 15")
    expect(page.locator("#published")).to_have_count(0)


def lines(page: Page) -> list[str]:
    """What the legends name."""
    return page.locator("#curve .u-legend .u-label").filter(visible=True).all_inner_texts()


def headings(page: Page) -> list[str]:
    return page.locator("table.epochs thead th").all_text_contents()


@pytest.fixture
def held_out(empty_site: story.Site) -> Job:
    """A training with validation on a published recipe, changed, and judged on 1,000 images."""
    changed = {"validation": {"images": 1024}, "select": "best"}
    name = "ikl-at-cifar10-wrn-34-10"
    job = story.trained(empty_site.db, name, epochs=60, accuracy=0.8391, overrides=changed)
    story.judged(empty_site.db, job, "autoattack-cifar10-linf", clean=0.8391, robust=0.5612, images=1000)
    return job


def test_held_out_accuracies_and_terms_have_their_lines_and_columns(
    empty_site: story.Site, page: Page, held_out: Job
) -> None:
    page.goto(f"{empty_site.url}/jobs/{held_out.id}")
    expect(curve(page, epochs=60)).to_be_visible()
    assert lines(page) == [
        *("epoch", "clean, held out", "PGD, held out", "clean, training", "adversarial, training"),
        *("loss", "natural", "wmse", "soft ce", "learning rate", "eps, in 1/255"),
        "images per second",
    ]
    assert headings(page) == [
        *("Epoch", "Loss", "natural", "wmse", "soft ce", "Clean, %", "Adv., %", "Held out, %", "PGD, %"),
        *("eps", "lr", "Images/s", "Time"),
    ]
    page.get_by_text("Table of epochs").click()
    newest = story.epoch(60, 60, held_out=True)
    assert newest.validation_accuracy is not None
    cells = page.locator("#epochs tr").first.locator("td").all_inner_texts()
    assert [cells[0], cells[2], cells[7]] == [
        "60", f"{newest.terms['natural']:.4f}", f"{100 * newest.validation_accuracy:.2f}",
    ]  # fmt: skip
    result = page.locator("#result")
    expect(result).to_contain_text("82.91 %")  # held out
    expect(result).to_contain_text("48.91 %")  # under PGD
    expect(result).to_contain_text(story.COMMIT)
    expect(result).to_contain_text("cuda:0 (NVIDIA H200)")


def test_a_legend_tells_the_newest_epoch_and_hides_a_line(
    empty_site: story.Site, page: Page, held_out: Job
) -> None:
    page.goto(f"{empty_site.url}/jobs/{held_out.id}")
    losses = page.locator("#curve .uplot").nth(1)
    wmse = losses.locator(".u-series").filter(has_text="wmse")
    expect(wmse).to_contain_text(f"{story.epoch(60, 60).terms['wmse']:.4f}")
    before = losses.locator("canvas").screenshot()
    wmse.locator("th").click()
    expect(wmse).to_have_class(re.compile("u-off"))
    assert losses.locator("canvas").screenshot() != before
    wmse.locator("th").click()
    expect(wmse).not_to_have_class(re.compile("u-off"))


@pytest.mark.parametrize("javascript", [True, False])
def test_the_papers_numbers_stand_beside_ours(
    empty_site: story.Site, new_page: NewPage, held_out: Job, javascript: bool
) -> None:
    page = new_page(java_script_enabled=javascript)
    [evaluation] = jobs.children(empty_site.db, held_out.id)
    less = "\N{MINUS SIGN}"
    for job in (held_out, evaluation):
        page.goto(f"{empty_site.url}/jobs/{job.id}")
        rows = page.locator("#published tbody tr").all()
        said = [[cell.inner_text() for cell in row.locator("th, td").all()] for row in rows]
        assert said == [
            ["Clean", "84.80", "83.91", f"{less}0.89"],
            ["AutoAttack", "57.09", "56.12", f"{less}0.97"],
        ]
        expect(page.locator("#published")).to_contain_text("AutoAttack standard on 1,000 test images")
        expect(page.locator("#published")).to_contain_text("differs from the published row's in epochs, select,")
    page.goto(f"{empty_site.url}/jobs/{held_out.id}")
    page.locator("#published tbody a").click()
    expect(page.locator("h1")).to_have_text("autoattack-cifar10-linf")


def test_a_training_with_everything_fits_a_narrow_screen(
    empty_site: story.Site, new_page: NewPage, held_out: Job
) -> None:
    page = new_page(viewport={"width": 320, "height": 800})
    page.goto(f"{empty_site.url}/jobs/{held_out.id}")
    expect(page.locator("#curve canvas")).to_have_count(4)
    page.get_by_text("Table of epochs").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_without_an_evaluation_the_papers_robust_accuracy_stands_alone(empty_site: story.Site, page: Page) -> None:
    job = story.trained(empty_site.db, "ikl-at-cifar10-wrn-34-10", epochs=200, accuracy=0.85)
    page.goto(f"{empty_site.url}/jobs/{job.id}")
    expect(page.locator("#published tbody tr").last).to_contain_text("not measured")
    expect(page.locator("#published")).not_to_contain_text("differs")


def test_what_was_adjusted_is_in_the_history_at_once(
    site: story.Site, page: Page, running: tuple[Job, claims.Claim]
) -> None:
    job, claim = running
    page.goto(f"{site.url}/jobs/{job.id}")
    claims.append(site.db, claim, story.ADJUSTED)
    expect(page.locator("#history li.adjusted")).to_contain_text(story.ADJUSTED.sentence)


@pytest.mark.long
def test_a_broken_stream_goes_on(site: story.Site, new_page: NewPage, running: tuple[Job, claims.Claim]) -> None:
    job, claim = running
    page = new_page(expected="Failed to load resource")
    page.route("**/events", lambda route: route.fulfill(status=503), times=1)
    page.goto(f"{site.url}/jobs/{job.id}")
    claims.append(site.db, claim, story.epoch(3, 10))
    expect(curve(page, epochs=3)).to_be_visible()


# --- one evaluation ---------------------------------------------------------------------------------------


@pytest.fixture
def judging(site: story.Site) -> Iterator[tuple[Job, claims.Claim]]:
    """An audited evaluation at two radii that has just begun, on a board that no other test looks at."""
    model = next(job for job in jobs.recent(site.db) if job.name == "ikl-at-digits" and job.result)
    asked = {"model.job": model.id, "threat.eps": 0.15, "policy": "audited", "curve": [0.05], "stop_below": 0.2}
    job = jobs.create(site.db, story.resolve("autoattack-digits-linf", asked))
    claim = story.start(site.db, job)
    yield job, claim
    if jobs.get(site.db, job.id).status not in TERMINAL:
        claims.fail(site.db, claim, "the test is over")


def rows(page: Page) -> list[list[str]]:
    """Of each stage: name, phase, standing, attacked, broken."""
    stages = page.locator("table.waterfall tbody tr:not(.radius)").all()
    cells = ("th", ".phase", ".standing b", ".attacked", ".broken")
    return [[stage.locator(cell).inner_text().split("\n")[0] for cell in cells] for stage in stages]


@pytest.mark.long
def test_the_waterfall_falls_batch_by_batch(
    site: story.Site, page: Page, judging: tuple[Job, claims.Claim]
) -> None:
    job, claim = judging
    page.goto(f"{site.url}/jobs/{job.id}")
    page.evaluate("window.sameDocument = true")
    result, waterfall = page.locator("#result"), page.locator("#waterfall")
    expect(result.locator(".title")).to_have_text("AutoAttack standard, audited")
    expect(result).to_contain_text("A cheap search; then the whole suite")
    expect(waterfall).to_contain_text("No batch of test images is done yet.")
    claims.append(site.db, claim, story.batch(0, "clean", range(60), 3, batches=2))
    expect(waterfall).to_contain_text("batch 1 of 2")
    expect(result.locator(".figures")).to_have_count(0)  # the clean accuracy of some is nobody's
    claims.append(site.db, claim, story.batch(0, "clean", range(60, 100), 2, number=1, batches=2))
    expect(result.locator(".figures")).to_contain_text("95.00 %")
    claims.append(site.db, claim, story.batch(1, "apgd-ce", range(3, 98), 20, phase="screen", eps=0.05))
    claims.append(
        site.db,
        claim,
        story.batch(2, "apgd-t", range(23, 63), 3, phase="screen", eps=0.05, batches=2, warnings=(story.WARNING,)),
    )
    expect(result.locator(".main")).to_contain_text("Still standing")
    expect(result.locator(".main")).to_contain_text("72.00 %")
    expect(result.locator(".main")).to_contain_text("95 % interval 62.5 to 79.9")
    expect(result).to_contain_text("Stops as soon as the robust accuracy is certain to be below 20.00 %.")
    expect(result.locator(".warning li")).to_have_text([story.WARNING])
    assert rows(page) == [
        ["clean", "", "95.00", "100", "5"],
        ["apgd-ce", "cheap search", "75.00", "95", "20"],
        ["apgd-t", "cheap search", "72.00", "40", "3"],
    ]
    expect(page.locator("table.waterfall tbody tr").last).to_contain_text("batch 1 of 2")
    claims.append(site.db, claim, story.batch(3, "square", range(30, 32), 1, phase="audit", eps=0.15))
    expect(waterfall.locator(".radius")).to_have_text(["Linf 0.05", "Linf 0.15"])
    recipe = claim.recipe
    assert isinstance(recipe, Evaluate)
    done = story.result_of(recipe, clean=0.95, robust=0.4, images=100)
    claims.finish(site.db, claim, Finished(result=done))
    expect(result.locator(".main")).to_contain_text("Robust accuracy")
    expect(result.locator(".main")).to_contain_text("40.00 %")
    expect(page.locator("#radii .line-chart")).to_be_visible()
    assert page.evaluate("window.sameDocument")


def find(site: story.Site, robust: float) -> Job:
    return next(job for job in jobs.recent(site.db) if job.robust_accuracy == robust)


def test_a_finished_evaluation_says_what_was_found(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/jobs/{find(site, 0.71).id}")
    result = page.locator("#result")
    expect(result.locator(".title")).to_have_text("AutoAttack standard")
    expect(result).to_contain_text("Attacks by dkl-bench 0.1.0, search in float32")
    expect(result).to_contain_text("95 % interval 61.5 to 79.0")
    expect(result.locator(".caution, .warning")).to_have_count(0)
    names = ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert page.locator("table.waterfall tbody th").all_inner_texts() == names
    square = page.locator("table.waterfall tbody tr").last.locator("td").all_inner_texts()
    assert [cell for cell in square if cell] == ["suite", "71.00", "72", "1", "72,000", NONE, "3.7 s"]
    expect(page.locator("#radii")).to_have_count(0)
    expect(page.locator(".classes tbody tr")).to_have_count(10)
    assert page.locator(".classes tbody tr").nth(1).locator("td.n").all_inner_texts() == ["95.30", "66.00"]
    assert page.locator(".classes tbody tr").last.locator("td.n").all_inner_texts() == ["97.70", NONE]
    expect(page.locator("#details")).to_contain_text("none: the model takes pixels in [0, 1]")
    expect(page.locator("#details")).to_contain_text(story.SHA256)
    expect(page.locator(".recipe")).to_contain_text("threat.eps")
    page.get_by_text("as JSON").click()
    expect(page.get_by_text('"chunk_size": 512')).to_be_visible()
    page.get_by_role("link", name="ikl-at-digits").first.click()
    expect(page.locator("h1")).to_have_text("ikl-at-digits")
    expect(page.locator("#children")).to_contain_text("screen: clean 95.00 %, robust estimate 73.00 %")
    expect(page.locator("#children")).to_contain_text("robust at most 55.00 %")


def test_a_screen_is_called_an_estimate(site: story.Site, page: Page) -> None:
    job = find(site, 0.73)
    page.goto(f"{site.url}/jobs/{job.id}")
    result = page.locator("#result")
    expect(result.locator(".title")).to_have_text("Screen an estimate, not AutoAttack")
    expect(result.locator(".main dt")).to_have_text("Robust accuracy, estimate")
    expect(result.locator(".caution")).to_contain_text("An estimate, not AutoAttack")
    expect(result.locator(".warning")).to_contain_text("Found suspicious")
    expect(result.locator(".warning li")).to_have_text([story.WARNING])
    expect(page.locator("#lineage")).to_contain_text("Not ranked: a screen is an estimate.")
    page.goto(f"{site.url}/jobs")
    expect(page.locator(f"tr[data-job='{job.id}'] td.n").last).to_contain_text("estimate")


def test_an_early_stop_is_called_an_upper_bound(site: story.Site, page: Page) -> None:
    job = find(site, 0.55)
    page.goto(f"{site.url}/jobs/{job.id}")
    expect(page.locator("#result .main dt")).to_have_text("Robust accuracy, at most")
    expect(page.locator("#result .caution")).to_contain_text("certain that the robust accuracy is below 71.00 %")
    expect(page.locator("#result .caution")).to_contain_text("an upper bound")
    expect(page.locator("#lineage")).to_contain_text("Not ranked: it stopped early")
    page.goto(f"{site.url}/jobs")
    expect(page.locator(f"tr[data-job='{job.id}'] td.n").last).to_contain_text("at most")


def test_an_audited_evaluation_at_several_radii(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/jobs/{find(site, 0.65).id}")
    expect(page.locator("#result")).to_contain_text("search in float16")
    bound = "With 95 % confidence the whole suite would break at most 4 more of 100 images."
    expect(page.locator("#result .caution")).to_have_text(bound)
    expect(page.locator("#details .said li")).to_have_text([story.NOTE])
    expect(page.locator(".waterfall .radius")).to_have_text(["Linf 0.02", "Linf 0.05", "Linf 0.1"])
    expect(page.get_by_role("img", name="Robust accuracy over the Linf radius")).to_be_visible()
    points = [row.split("\t") for row in page.locator("table.radii tbody tr").all_inner_texts()]
    assert [point[0] for point in points] == ["0, clean", "0.02", "0.05", "0.1"]
    assert [point[1] for point in points] == ["95.00", "85.00", "75.00", "65.00"]
    places = [
        [float(dot.get_attribute(at) or "") for at in ("cx", "cy")] for dot in page.locator("#radii circle").all()
    ]
    assert [x for x, _ in places] == [50, 134, 260, 470]
    assert sorted(y for _, y in places) == [y for _, y in places]  # downwards
    band = page.locator("#radii .band").get_attribute("points") or ""
    corners = [tuple(map(float, corner.split(","))) for corner in band.split()]
    upper, lower = corners[:4], corners[:3:-1]
    for (x, y), above, below in zip(places, upper, lower, strict=True):
        assert above[0] == below[0] == x
        assert above[1] < y < below[1]


@pytest.mark.parametrize("javascript", [True, False])
def test_files_are_offered_where_they_are_stored(
    empty_site: story.Site, new_page: NewPage, tmp_path: Path, javascript: bool
) -> None:
    page = new_page(java_script_enabled=javascript)
    model = story.trained(empty_site.db, "ikl-at-digits", epochs=1)
    evidence = empty_site.keep(b"evidence", tmp_path)
    job = story.judged(empty_site.db, model, evidence_sha256=evidence)
    page.goto(f"{empty_site.url}/jobs/{job.id}")
    links = page.get_by_role("link", name="download", exact=True)
    expect(links).to_have_count(1)  # the checkpoint is not there
    expect(page.get_by_text("dklbench verify")).to_have_count(0)
    with page.expect_download() as download:
        links.click()
    assert download.value.suggested_filename == f"{job.id}-evidence.safetensors"
    assert Path(download.value.path()).read_bytes() == b"evidence"
    checkpoint = empty_site.keep(b"checkpoint", tmp_path)
    job = story.judged(empty_site.db, model, evidence_sha256=evidence, checkpoint_sha256=checkpoint)
    page.goto(f"{empty_site.url}/jobs/{job.id}")
    expect(links).to_have_count(2)
    expect(page.get_by_text(f"dklbench verify {job.id} --url {empty_site.url}")).to_be_visible()


def test_a_hundred_classes_are_columns_and_a_table(empty_site: story.Site, page: Page) -> None:
    model = story.trained(empty_site.db, "ikl-at-digits", epochs=1)
    job = story.judged(empty_site.db, model, "autoattack-cifar100-linf", clean=0.64, robust=0.31)
    page.goto(f"{empty_site.url}/jobs/{job.id}")
    expect(page.locator(".columns-plot .column")).to_have_count(100)
    page.get_by_text("Table of classes").click()
    expect(page.locator(".classes tbody tr")).to_have_count(100)
    expect(page.get_by_role("rowheader", name="aquarium fish")).to_be_visible()


# --- cancelling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("javascript", [True, False])
def test_cancelling(
    site: story.Site, new_page: NewPage, running: tuple[Job, claims.Claim], javascript: bool
) -> None:
    job, claim = running
    page = new_page(java_script_enabled=javascript)
    page.goto(f"{site.url}/jobs/{job.id}")
    page.get_by_text("Cancel this job").click()
    if javascript:  # news does not close what was opened
        claims.append(site.db, claim, story.progress(4, 10, "epoch 5 of 10"))
        expect(page.locator("#doing")).to_contain_text("epoch 5 of 10")
    page.get_by_role("button", name="Cancel it").click()
    expect(page.locator("#state")).to_contain_text("cancelling until its worker has left it and the GPU is free")
    assert page.url == f"{site.url}/jobs/{job.id}"
    expect(page.get_by_role("button", name="Cancel it")).to_have_count(0)
    claims.stopped(site.db, claim)
    if not javascript:
        page.reload()
    expect(page.locator("#state .chip")).to_have_text("canceled")


def test_another_site_cannot_cancel(
    site: story.Site, new_page: NewPage, running: tuple[Job, claims.Claim]
) -> None:
    job, _ = running
    page = new_page(expected="403")
    page.set_extra_http_headers({"Sec-Fetch-Site": "cross-site"})
    answer = page.request.post(
        f"{site.url}/jobs/{job.id}/cancel", headers={"Accept": "text/html", "Sec-Fetch-Site": "cross-site"}
    )
    assert answer.status == 403
    assert "another site asked" in answer.text()
    assert jobs.get(site.db, job.id).status == "running"


def test_cancelling_too_late_is_explained(site: story.Site, page: Page) -> None:
    job = next(job for job in jobs.recent(site.db) if job.status == "succeeded")
    answer = page.request.post(f"{site.url}/jobs/{job.id}/cancel", headers={"Accept": "text/html"})
    assert answer.status == 409
    assert "nothing left to cancel" in answer.text()


# --- running again, waiting, provenance -------------------------------------------------------------------


@pytest.mark.parametrize("javascript", [True, False])
def test_running_again(empty_site: story.Site, new_page: NewPage, javascript: bool) -> None:
    page = new_page(java_script_enabled=javascript)
    first = jobs.create(empty_site.db, RECIPE, name="ikl-at-digits")
    claims.fail(empty_site.db, story.start(empty_site.db, first), "loss is nan at epoch 12, batch 40")
    page.goto(f"{empty_site.url}/jobs/{first.id}")
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#state .chip")).to_have_text("queued")
    [second] = jobs.recent(empty_site.db, status="queued")
    assert (page.url, second.rerun_of) == (f"{empty_site.url}/jobs/{second.id}", first.id)
    expect(page.get_by_role("button", name="Run again")).to_have_count(0)  # it has not ended
    page.locator("#reruns").get_by_role("link", name=first.id).click()
    expect(page.locator("#reruns")).to_contain_text(f"run again as {second.id}")
    answer = page.request.post(f"{empty_site.url}/jobs/{second.id}/rerun", headers={"Accept": "text/html"})
    assert answer.status == 409
    assert "cancel it or wait for its end" in answer.text()


def test_why_a_job_waits(empty_site: story.Site, page: Page) -> None:
    job = jobs.create(empty_site.db, RECIPE)
    order = jobs.Order(RECIPE, gpus=4, gpu_memory=40, priority=5)
    [large] = jobs.create_all(empty_site.db, [order], caller=ANONYMOUS, max_queued=None)
    page.goto(f"{empty_site.url}/jobs/{job.id}")
    expect(page.locator("#state")).to_contain_text("no worker is alive (workers)")
    registry.arrive(empty_site.db, WORKER)
    expect(page.locator("#state")).to_contain_text("waits for a worker, 2nd in queue gpu")
    page.goto(f"{empty_site.url}/jobs/{large.id}")
    expect(page.locator("#state")).to_contain_text("no living worker has 4 GPUs; the most is 1")
    expect(page.get_by_text("Priority +5, needs 4 GPUs and 40 GiB per GPU")).to_be_visible()
    page.goto(f"{empty_site.url}/jobs")
    expect(page.locator(f"tr[data-job='{large.id}']")).to_contain_text("no living worker has 4 GPUs")
    claims.setback(
        empty_site.db, story.start(empty_site.db, job), "the disk is full; it will resume", pause_seconds=99
    )
    page.goto(f"{empty_site.url}/jobs/{job.id}")
    expect(page.locator("#state")).to_contain_text("after: the disk is full; it will resume")
    expect(page.locator("#state p")).to_have_count(1)


def test_workers_join_and_leave_while_one_looks(
    site: story.Site, page: Page, judging: tuple[Job, claims.Claim]
) -> None:
    job, claim = judging
    page.goto(f"{site.url}/jobs/{job.id}")
    claims.announce(site.db, claim, [(0, 0), (0, 1)])
    claims.take_chunk(site.db, claim, [(0, 0), (0, 1)])
    helper = claims.claim(site.db, job.id, worker="gpu-box:4712", lease_seconds=3600)
    assert helper is not None
    claims.append(site.db, helper, story.STARTED, story.progress(1, 10, "clean, batch 1 of 2"))
    expect(page.locator("#doing")).to_contain_text("on gpu-box:4711, gpu-box:4712")
    expect(page.locator("#history li.joined")).to_contain_text("joined gpu-box:4712 on cuda:0, attempt 2")
    assert claims.leave(site.db, helper)
    expect(page.locator("#history li.left")).to_contain_text("left gpu-box:4712")
    expect(page.locator("#doing")).not_to_contain_text("gpu-box:4712")


def test_a_long_history_is_folded(empty_site: story.Site, page: Page) -> None:
    job = jobs.create(empty_site.db, RECIPE)
    for _ in range(6):
        claims.stopped(empty_site.db, story.start(empty_site.db, job))
    page.goto(f"{empty_site.url}/jobs/{job.id}")
    expect(page.locator("#history li").filter(visible=True)).to_have_count(12)
    page.get_by_text("7 earlier changes").click()
    expect(page.locator("#history li").filter(visible=True)).to_have_count(19)
    expect(page.locator("#history li").first).to_contain_text("queued by anonymous")


@pytest.mark.parametrize("name", ["ikl-at-digits", "autoattack-digits-linf"])
def test_a_result_says_where_it_comes_from(site: story.Site, page: Page, name: str) -> None:
    job = next(job for job in jobs.recent(site.db) if job.name == name and job.result)
    page.goto(f"{site.url}/jobs/{job.id}")
    fold = page.locator(".provenance")
    page.get_by_text("Provenance: what it takes").click()
    for said in (job.fingerprint, story.COMMIT, "NVIDIA H200", "nvidia 580.95.05", "torch 2.11.0", "d47a" * 16):
        expect(fold).to_contain_text(said)
    expect(fold.get_by_text(f"dklbench replay {job.id} --url {site.url}")).to_be_visible()


def test_a_result_of_an_older_service_says_what_it_knows(site: story.Site, page: Page) -> None:
    job = story.trained(site.db, "natural-digits", epochs=1)
    with writing(site.db) as session:
        stored = session.get_one(Job, job.id)
        assert stored.result is not None
        stored.result = {name: value for name, value in stored.result.items() if name != "provenance"}
    page.goto(f"{site.url}/jobs/{job.id}")
    page.get_by_text("Provenance: what it takes").click()
    expect(page.get_by_text("did not record data, code, versions and device")).to_be_visible()
    expect(page.locator(".provenance")).to_contain_text(job.fingerprint)
