"""Studies: the rows of a table of the IKL-AT paper, each with a recipe, at one budget. No torch.

A study is a value: which recipes, what is changed of each, and how its models are judged. It is named
TABLE-BUDGET: "2-tiny". Its rows are the methods that the table compares, and others that have a recipe here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from dkl.catalog import RECIPES, named, resolve
from dkl.catalog.budgets import BUDGETS, Budget
from dkl.catalog.entries import DKL_PAPER, Published
from dkl.explain import InvalidRecipeError
from dkl.recipes import Recipe, Train, fingerprint


class UnknownStudyError(LookupError):
    """There is no such table or budget; the message says which there are."""


@dataclass(frozen=True)
class Row:
    """A method of a table, and the recipe that trains it."""

    method: str
    recipe: str
    in_table: bool = False
    """Whether the table prints it; the others are beside it, from other sources or without a number."""
    changes: Mapping[str, Any] | None = None
    """To the recipe whatever the budget: where it is known on another data set only."""
    note: str = ""


@dataclass(frozen=True)
class Table:
    number: int
    dataset: Literal["cifar10", "cifar100"]
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Judge:
    """How the models of a study are judged: an evaluation and changes to it, without the model."""

    recipe: str
    overrides: Mapping[str, Any]

    def of(self, job: str) -> Recipe:
        """The evaluation of the model that the training `job` leaves."""
        return resolve(self.recipe, {**self.overrides, "model.job": job})


@dataclass(frozen=True)
class Planned:
    """A row at the study's budget."""

    row: Row
    overrides: Mapping[str, Any]
    """What the budget changes of the row's recipe; none of them could be left out."""
    recipe: Train
    question: str
    """Its fingerprint."""
    judge: Judge
    published: Published | None
    """What the table prints, or else what the catalogue compares the recipe with."""


@dataclass(frozen=True)
class LeftOut:
    """A row of the table that the budget has no way to train."""

    row: Row
    published: Published | None
    reason: str


@dataclass(frozen=True)
class Study:
    table: Table
    budget: Budget
    rows: tuple[Planned, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def name(self) -> str:
        return f"{self.table.number}-{self.budget.name}"

    @property
    def title(self) -> str:
        return f"Table {self.table.number}, {self.budget.name} budget"

    @property
    def dataset(self) -> str:
        """What is trained and judged on, which need not be the table's."""
        return self.budget.dataset or self.table.dataset

    @property
    def same_data(self) -> bool:
        """Whether measured accuracies are of the data set that the published ones are of."""
        return self.dataset == self.table.dataset

    @property
    def reference(self) -> str:
        """The recipe that others are compared with: IKL-AT without further augmentation."""
        return f"ikl-at-{self.table.dataset}-wrn-34-10"


# --- the tables -------------------------------------------------------------------------------------------

_MISNAMED = 'The paper calls it "ACAT" with AutoAugment.'
_IS_LAS_AWP = 'The paper calls it "LAS-AT".'
_AS_IKL = "With gamma 1 GKL-AT is IKL-AT, whose numbers its README repeats."

TABLES: dict[int, Table] = {
    2: Table(
        2,
        "cifar100",
        "CIFAR-100, Linf 8/255",
        (
            Row("AT-AWP", "at-awp-cifar100-wrn-34-10", True, note='The paper calls it "AWP".'),
            Row("LBGAT, beta 6", "lbgat-cifar100-wrn-34-10-beta6", True, note='The paper calls it "LBGAT".'),
            Row("LAS-AWP", "las-awp-cifar100-wrn-34-10", True, note=_IS_LAS_AWP),
            Row("ACAT", "acat-cifar100-wrn-34-10", True),
            Row("IKL-AT", "ikl-at-cifar100-wrn-34-10", True),
            Row("DAJAT", "dajat-cifar100-wrn-34-10-2aa", True, note=_MISNAMED),
            Row("IKL-AT, AutoAugment", "ikl-at-cifar100-wrn-34-10-autoaug", True),
            Row("DM-AT, 50M generated", "dm-at-cifar100-wrn-28-10-50m", True),
            Row("IKL-AT, 50M generated", "ikl-at-cifar100-wrn-28-10-50m", True),
            Row("GKL-AT", "gkl-at-cifar100-wrn-34-10", note=_AS_IKL),
            Row("GKL-AT, gamma 0.4", "gkl-at-cifar100-wrn-34-10-gamma04"),
            Row("GKL-AT, 50M generated", "gkl-at-cifar100-wrn-28-10-50m"),
            Row("TRADES", "trades-cifar100-wrn-34-10"),
            Row("TRADES-AWP", "trades-awp-cifar100-wrn-34-10"),
            Row(
                "TRADES-AWP, baseline",
                "trades-awp-cifar100-wrn-34-10-dkl",
                note="The paper's baseline, whose radius grows.",
            ),
            Row("PGD-AT", "pgd-at-cifar100-preact-resnet-18", note="Published for PreActResNet-18."),
            Row(
                "MART",
                "mart-cifar10-wrn-34-10",
                changes={"dataset": "cifar100"},
                note="Its authors report no CIFAR-100; the settings are those for CIFAR-10.",
            ),
            Row("LBGAT, beta 0", "lbgat-cifar100-wrn-34-10-beta0"),
            Row("LAS-AT", "las-at-cifar100-wrn-34-10"),
            Row("LAS-TRADES", "las-trades-cifar100-wrn-34-10"),
        ),
    ),
    3: Table(
        3,
        "cifar10",
        "CIFAR-10, Linf 8/255",
        (
            Row("PGD-AT", "pgd-at-cifar10-wrn-34-20", True, note='The paper calls it "Rice et al."'),
            Row("LBGAT, beta 0", "lbgat-cifar10-wrn-34-20-beta0", True, note='The paper calls it "LBGAT".'),
            Row("TRADES-AWP", "trades-awp-cifar10-wrn-34-10", True, note='The paper calls it "AWP".'),
            Row("LAS-AWP", "las-awp-cifar10-wrn-34-10", True, note=_IS_LAS_AWP),
            Row(
                "ACAT",
                "acat-cifar10-wrn-34-10",
                True,
                note="The paper prints 82.41 as its clean accuracy, which is ResNet-18's.",
            ),
            Row("IKL-AT", "ikl-at-cifar10-wrn-34-10", True),
            Row("DAJAT", "dajat-cifar10-wrn-34-10-3aa", True, note=_MISNAMED),
            Row("IKL-AT, AutoAugment", "ikl-at-cifar10-wrn-34-10-autoaug", True),
            Row("DM-AT, 20M generated", "dm-at-cifar10-wrn-28-10-20m", True),
            Row("IKL-AT, 20M generated", "ikl-at-cifar10-wrn-28-10-20m", True),
            Row("GKL-AT", "gkl-at-cifar10-wrn-34-10", note=_AS_IKL),
            Row("GKL-AT, gamma 0.2", "gkl-at-cifar10-wrn-34-10-gamma02"),
            Row("GKL-AT, 20M generated", "gkl-at-cifar10-wrn-28-10-20m"),
            Row("TRADES", "trades-cifar10-wrn-34-10"),
            Row("MART", "mart-cifar10-wrn-34-10"),
            Row("AT-AWP", "at-awp-cifar10-wrn-34-10"),
            Row("MART-AWP", "mart-awp-cifar10-wrn-34-10"),
            Row("LBGAT, beta 6", "lbgat-cifar10-wrn-34-10-beta6"),
            Row("LAS-AT", "las-at-cifar10-wrn-34-10"),
            Row("LAS-TRADES", "las-trades-cifar10-wrn-34-10"),
        ),
    ),
}


# --- from a name to a study -------------------------------------------------------------------------------


def study_names() -> list[str]:
    """Every TABLE-BUDGET, in the order of the tables, the cheapest first."""
    return [f"{number}-{budget}" for number in TABLES for budget in BUDGETS]


@cache
def study(name: str) -> Study:
    """The study called TABLE-BUDGET; UnknownStudyError names those that there are."""
    if name not in study_names():
        raise UnknownStudyError(f"there is no study {name!r}; there are {', '.join(study_names())}")
    number, _, budget_name = name.partition("-")
    table, budget = TABLES[int(number)], BUDGETS[budget_name]
    rows: list[Planned] = []
    left_out: list[LeftOut] = []
    for row in table.rows:
        reason = budget.why_not(_recipe(row))
        if reason:
            left_out.append(LeftOut(row, _published(row, table), reason))
        else:
            rows.append(_planned(row, table, budget))
    return Study(table, budget, tuple(rows), tuple(left_out))


def _planned(row: Row, table: Table, budget: Budget) -> Planned:
    wanted = {**(row.changes or {}), **budget.overrides(_recipe(row))}
    recipe = _train(row.recipe, wanted)
    # Later ones first: a field inside of a document goes before the document.
    overrides = dict(wanted)
    for path in reversed(wanted):
        fewer = {other: value for other, value in overrides.items() if other != path}
        if _makes(row.recipe, fewer, recipe):
            overrides = fewer
    published = _published(row, table)
    return Planned(row, overrides, recipe, fingerprint(recipe), _judge(recipe, budget, published), published)


def _makes(name: str, overrides: Mapping[str, Any], recipe: Train) -> bool:
    try:
        return resolve(name, overrides) == recipe
    except InvalidRecipeError:
        return False


def _judge(recipe: Train, budget: Budget, published: Published | None) -> Judge:
    """In the ball that the published robust accuracy is about, or else in the one that was trained against."""
    assert recipe.threat is not None
    eps = recipe.threat.eps
    if budget.cut is None and published is not None and published.eps is not None:
        eps = published.eps
    name = f"autoattack-{recipe.dataset}-linf"
    usual = RECIPES[name].recipe.threat  # type: ignore[union-attr]
    radius = {} if usual is not None and abs(eps - usual.eps) < 1e-9 else {"threat.eps": eps}
    return Judge(name, {**budget.judge, **radius})


def _recipe(row: Row) -> Train:
    return _train(row.recipe, row.changes or {})


def _train(name: str, overrides: Mapping[str, Any]) -> Train:
    recipe = resolve(name, overrides)
    assert isinstance(recipe, Train)
    return recipe


def _published(row: Row, table: Table) -> Published | None:
    """The number of the table itself, if the catalogue has it; else that of the entry."""
    entry = named(row.recipe)
    if row.changes:  # of another data set
        return None
    numbers = [one for one in (entry.published, *entry.also) if isinstance(one, Published)]
    printed = f"{DKL_PAPER}, Table {table.number}"
    return next((one for one in numbers if one.source == printed), numbers[0] if numbers else None)
