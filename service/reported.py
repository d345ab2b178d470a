"""What others report, as rows of boards."""

from functools import cache

from dkl.architectures import show_model
from dkl.catalog import RECIPES, Named, Published
from dkl.recipes import Train
from service.rows import Board, Boards, Row


@cache
def reported() -> Boards:
    """Every row that somebody reports."""
    boards: dict[Board, list[Row]] = {}
    for name, entry in RECIPES.items():
        if isinstance(entry.published, Published):
            row = _row(name, entry)
            boards.setdefault(row.board, []).append(row)
    return boards


def _row(name: str, entry: Named) -> Row:
    recipe, published = entry.recipe, entry.published
    assert isinstance(recipe, Train)
    assert recipe.threat is not None
    assert published is not None
    eps = recipe.threat.eps if published.eps is None else published.eps
    return Row(
        entry=name,
        name=name,
        source="published",
        board=Board(dataset=recipe.dataset, threat_model=recipe.threat.norm, eps=eps),
        eps=eps,
        architecture=show_model(recipe.model),
        clean_accuracy=published.clean_accuracy,
        robust_accuracy=published.robust_accuracy,
        best_known_accuracy=published.robust_accuracy,
        images=None,
        suite="AutoAttack standard",
        citation=published.source,
        url=published.url,
    )
