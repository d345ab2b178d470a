"""Published rows: all of RobustBench's, the papers', nothing twice, each linked to the recipe that trains it."""

import json
import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from dkl.catalog import RECIPES, Named, Published
from dkl.intervals import wilson_interval
from service.in_print import in_print, packaged_documents
from service.model_info import ModelInfo
from service.papers import papers
from service.reported import packaged
from service.rows import Row

RANKS = json.loads((Path(__file__).parent.parent / "golden" / "robustbench_ranks.json").read_text())
"""By "DATASET/THREAT_MODEL": key and best known accuracy of each row, in RobustBench's order."""
ROWS = packaged().rows


def row(entry: str) -> Row:
    return ROWS[entry]


def of_robustbench(dataset: str, threat_model: str) -> list[Row]:
    return [r for r in ROWS.values() if r.entry.startswith(f"robustbench-{dataset}-{threat_model}-")]


def test_every_board_is_as_full_as_its_sources() -> None:
    """RobustBench's 236 rows; and of the papers' numbers those that RobustBench does not have."""
    expected = {
        ("cifar10", "Linf", 8.0): (99, 30),
        ("cifar10", "L2", 127.5): (21, 4),
        ("cifar10", "corruptions", None): (23, 0),
        ("cifar100", "Linf", 8.0): (38, 39),
        ("cifar100", "corruptions", None): (13, 0),
        ("imagenet", "Linf", 4.0): (30, 0),
        ("imagenet", "corruptions", None): (12, 0),
        ("svhn", "Linf", 8.0): (0, 1),
        ("tinyimagenet", "Linf", 8.0): (0, 1),
        **{("cifar100", "Linf", eps): (0, 2) for eps in (2.0, 4.0, 6.0, 10.0, 12.0)},
    }
    found = {}
    for board, rows in packaged().boards.items():
        origins = Counter(r.entry.partition("-")[0] for r in rows)
        eps = None if board.eps is None else round(255 * board.eps, 6)
        found[board.dataset, board.threat_model, eps] = (origins["robustbench"], origins["paper"])
    assert found == expected
    assert sum(map(len, packaged().boards.values())) == len(ROWS) == 236 + 85


def test_no_number_stands_twice() -> None:
    numbers = Counter(
        (r.board, r.architecture.removesuffix(" (Swish)"), r.clean_accuracy, r.robust_accuracy)
        for r in ROWS.values()
    )
    assert [number for number, times in numbers.items() if times > 1] == []


def test_every_printed_number_is_on_its_board_or_a_misprint() -> None:
    on_boards = {(r.board.dataset, r.clean_accuracy, r.robust_accuracy) for r in ROWS.values()}
    claimed = {(r.board.dataset, r.clean_accuracy, r.reported_accuracy) for r in ROWS.values()}
    misprints = 0
    for printed in papers().rows:
        number = (printed.dataset, round(printed.clean / 100, 6), round(printed.robust / 100, 6))
        assert (number in on_boards | claimed) is (printed.misprint is None), printed
        misprints += printed.misprint is not None
    assert len(papers().rows) == 183
    assert misprints == 7


def test_entries_are_names_for_addresses() -> None:
    assert all(re.fullmatch("[A-Za-z0-9._-]{1,200}", entry) for entry in ROWS)
    assert all(entry == r.entry for entry, r in ROWS.items())
    assert "robustbench-cifar10-Linf-Cui2023Decoupled_WRN-28-10" in ROWS
    assert "paper-cifar100-Linf-ikl-at-wrn-34-10-6340-3191" in ROWS
    assert len({entry.casefold() for entry in ROWS}) == len(ROWS)


@pytest.mark.parametrize("board", RANKS)
def test_ranking_by_best_known_is_robustbench_s(board: str) -> None:
    """Its rows alone, in its order; RobustBench numbers equal accuracies one after another, in any order."""
    dataset, threat_model = board.split("/")
    mine = sorted(of_robustbench(dataset, threat_model), key=lambda r: -r.best_known_accuracy)
    found = [(best, {r.name for r in tied}) for best, tied in groupby(mine, lambda r: r.best_known_accuracy)]
    theirs = groupby(RANKS[board], lambda pair: pair[1])
    expected = [(round(percent / 100, 6), {key for key, _ in tied}) for percent, tied in theirs]
    assert found == expected


def test_a_row_says_what_robustbench_says() -> None:
    found = row("robustbench-cifar10-Linf-Rebuffi2021Fixing_70_16_cutmix_extra")
    assert found.name == "Rebuffi2021Fixing_70_16_cutmix_extra"
    assert (found.clean_accuracy, found.robust_accuracy, found.best_known_accuracy) == (0.9223, 0.6658, 0.6656)
    assert (found.reported_accuracy, found.extra_data, found.unreliable) == (0.6656, True, False)
    assert (found.title, found.year) == ("Fixing Data Augmentation to Improve Adversarial Robustness", 2021)
    assert found.images == 10_000
    assert found.robust_interval == pytest.approx(wilson_interval(6658, 10_000))
    assert found.suite == "AutoAttack standard"
    assert found.citation == "RobustBench"
    assert row("robustbench-imagenet-Linf-Xu2024MIMIR_Swin-L").images == 5_000


def test_where_a_file_says_nothing_nothing_is_claimed() -> None:
    corrupted = row("robustbench-cifar10-corruptions-Diffenderfer2021Winning_LRR_CARD_Deck")
    assert corrupted.reported_accuracy is None  # the file has "null"
    assert corrupted.unreliable is None
    assert corrupted.forward_passes == 6
    assert sum(r.unreliable is True for r in ROWS.values()) == 2


def test_every_row_has_a_year_but_for_the_models_without_a_paper() -> None:
    without = {r.name for r in ROWS.values() if r.year is None}
    assert without == {"Standard", "Standard_R50"}
    assert {r.venue for r in ROWS.values() if r.name in without} == {None}
    assert row("robustbench-cifar10-L2-Engstrom2019Robustness").venue == "GitHub, Sep 2019"
    assert row("robustbench-cifar10-L2-Engstrom2019Robustness").year == 2019


def test_old_radii_stand_on_the_board_that_robustbench_puts_them_on() -> None:
    old = [r for r in ROWS.values() if r.eps is not None and r.eps != r.board.eps]
    assert Counter(r.eps for r in of_robustbench("cifar10", "Linf"))[0.031] == 6
    assert {(r.eps, r.board.eps) for r in old} == {(0.031, 8 / 255), (128 / 255, 0.5)}
    assert all(r.note and ("0.031" in r.note or "128/255" in r.note) for r in old)
    zhang = row("robustbench-cifar10-Linf-Zhang2019Theoretically")
    assert zhang.note == "Uses Linf = 0.031 ≈ 7.9/255 instead of 8/255."


def test_corruption_rows_have_their_accuracy_as_best_known_and_tell_of_3d_corruptions() -> None:
    found = row("robustbench-imagenet-corruptions-Tian2022Deeper_DeiT-B")
    assert found.board.eps is found.eps is None
    assert found.robust_accuracy == found.best_known_accuracy == 0.6755
    assert found.suite == "common corruptions, 15 x 5"
    assert found.note == (
        "Mean corruption error 41.70 %. Under 3D common corruptions (12 x 5): accuracy 65.90 %, "
        "mean corruption error 47.97 %."
    )


def test_no_html_is_left() -> None:
    texts = [str(getattr(r, field)) for r in ROWS.values() for field in ("note", "title", "venue", "authors")]
    assert not [text for text in texts if re.search(r"<|&\w+;|\\\(", text)]
    assert "https://arxiv.org/abs/2002.08347" in (row("robustbench-cifar10-Linf-Xiao2020Enhancing").note or "")


def test_a_number_printed_in_several_places_names_them_all() -> None:
    found = row("robustbench-cifar100-Linf-Cui2023Decoupled_WRN-28-10")
    assert found.citation is not None
    assert found.citation.startswith("RobustBench; also in Cui et al. 2024, Table 2; Cui et al. 2024, Table 11; ")
    assert "README of jiequancui/DKL, DKLv1" in found.citation
    assert packaged().merged["paper-cifar100-Linf-ikl-at-wrn-28-10-7385-3918"] == found.entry


def test_what_the_authors_claim_is_the_same_row() -> None:
    """RobustBench found 52.48 where DAJAT's README prints 52.50."""
    found = row("robustbench-cifar10-Linf-Addepalli2022Efficient_RN18")
    assert (found.robust_accuracy, found.reported_accuracy) == (0.5248, 0.525)
    assert "README of val-iisc/DAJAT" in (found.citation or "")


def test_a_log_tells_how_many_images_a_paper_s_row_has() -> None:
    found = row("paper-cifar100-Linf-ikl-at-wrn-34-10-6651-3143")
    assert found.images == 10_000
    assert found.robust_interval == pytest.approx(wilson_interval(3143, 10_000))
    assert row("paper-cifar100-Linf-ikl-at-wrn-34-10-6340-3191").robust_interval is None


def test_every_number_of_the_catalogue_is_a_row_that_names_a_recipe() -> None:
    found = packaged().recipes
    assert set(found) == {name for name, entry in RECIPES.items() if isinstance(entry.published, Published)}
    for name, of_recipe in found.items():
        paper = RECIPES[name].published
        assert isinstance(paper, Published)
        numbers = {of_recipe.robust_accuracy, of_recipe.reported_accuracy}
        assert of_recipe.clean_accuracy == pytest.approx(paper.clean_accuracy)
        assert any(number == pytest.approx(paper.robust_accuracy) for number in numbers)
        assert of_recipe.recipe in RECIPES
    named = {r.recipe for r in ROWS.values() if r.recipe}
    assert "ikl-at-cifar100-wrn-34-10" in named
    assert not [r.entry for r in ROWS.values() if r.name in RECIPES]  # each one is RobustBench's or a paper's


def test_two_recipes_with_the_same_number_share_its_row() -> None:
    found = packaged().recipes
    assert found["gkl-at-cifar100-wrn-34-10"] is found["ikl-at-cifar100-wrn-34-10"]
    assert found["ikl-at-cifar100-wrn-34-10"].recipe == "ikl-at-cifar100-wrn-34-10"


def test_a_number_of_the_catalogue_that_no_file_has_gets_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES["ikl-at-cifar100-wrn-34-10"].recipe
    new = Named(recipe, "New.", Published(0.7, 0.5, "A new paper, Table 1", "https://example.org"))
    monkeypatch.setitem(RECIPES, "brand-new", new)
    found = in_print(packaged_documents())
    assert found.recipes["brand-new"].entry == "paper-cifar100-Linf-brand-new-7000-5000"
    assert found.recipes["brand-new"].board == row("robustbench-cifar100-Linf-Rice2020Overfitting").board
    assert len(found.rows) == len(ROWS) + 1


def test_an_imported_entry_takes_over_the_number_that_a_paper_has() -> None:
    paper = row("paper-cifar10-Linf-ikl-at-wrn-34-10-8520-5762")
    new = ModelInfo(
        dataset="cifar10", threat_model="Linf", key="Cui2025", eps="8/255", clean_acc="85.20",
        autoattack_acc="57.62", architecture="WideResNet-34-10",
    )  # fmt: skip
    found = in_print([*packaged_documents(), new])
    assert paper.entry not in found.rows
    assert found.merged[paper.entry] == new.entry
    assert found.rows[new.entry].recipe == paper.recipe == "ikl-at-cifar10-wrn-34-10-autoaug"
    assert len(found.rows) == len(ROWS)
