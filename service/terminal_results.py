"""What a terminal says about the end of a job: its result in a line, and what one should know who reads it."""

from typing import Any

from rich.markup import escape

from dkl.catalog import RECIPES, Published, PublishedAccuracy


def result_line(result: dict[str, Any]) -> str:
    if result["kind"] == "train":
        return f"[green]trained[/]: {result['clean_accuracy']:.1%} clean, {result['seconds']:.0f} s"
    if result["kind"] == "distill":
        return f"[green]distilled[/]: {result['clean_accuracy']:.1%} clean, {result['seconds']:.0f} s"
    if result["kind"] == "import":
        return f"[green]taken in[/]: {result['parameters']:,} parameters"
    if result["kind"] == "corruptions":
        accuracies = f"{result['clean_accuracy']:.1%} clean, [bold]{result['corruption_accuracy']:.1%} corrupted"
        return f"[green]judged[/]: {accuracies}"
    at_most = "at most " if result.get("stopped_early") else ""
    line = (
        f"[green]judged[/]: {result['clean_accuracy']:.1%} clean, "
        f"{at_most}[bold]{result['robust_accuracy']:.1%} robust[/]"
    )
    match result.get("protocol"):
        case None | "AutoAttack standard":
            return line
        case "screen":
            return f"{line}, an estimate, not AutoAttack"
        case protocol:
            return f"{line}, {protocol}"


def remarks(result: dict[str, Any], title: str) -> list[str]:
    """What somebody should know who reads the accuracies."""
    if result["kind"] == "import":
        return [f"[yellow]note:[/] {escape(note)}" for note in result["notes"]]
    remarks = [f"[yellow]suspicious:[/] {escape(warning)}" for warning in result.get("warnings", ())]
    if (more := result.get("could_still_break")) is not None:
        remarks.append(
            f"with 95 % confidence the whole suite would break at most {round(more * result['images'])} more of "
            f"{result['images']} images"
        )
    match result["kind"]:
        case "train":
            return remarks + _remarks_on_weights(result) + _remarks_on_papers(result, title)
        case "distill":
            taught = _remarks_on_distilling(result)
            return remarks + _remarks_on_weights(result) + taught + _remarks_on_papers(result, title)
        case _:
            return remarks


def _remarks_on_weights(result: dict[str, Any]) -> list[str]:
    """What is out of the ordinary, which epoch's weights they are, and how they do on the parts of a long tail."""
    remarks = [f"[yellow]note:[/] {escape(note)}" for note in result.get("notes", ())]
    epoch, held_out = result.get("selected_epoch"), result.get("validation_accuracy")
    if epoch is not None and (held_out is not None or epoch != result["epochs"]):
        robust = result.get("validation_robust_accuracy")
        judged = "" if held_out is None else f": {held_out:.2%} on held-out images"
        under_pgd = "" if robust is None else f", {robust:.2%} under PGD"
        remarks.append(f"weights of epoch {epoch} of {result['epochs']}{judged}{under_pgd}")
    groups = {name: result.get(f"{name}_accuracy") for name in ("many", "medium", "few")}
    if shown := [f"{name} {value:.2%}" for name, value in groups.items() if value is not None]:
        remarks.append(f"classes with many, medium or few training images: {', '.join(shown)}")
    return remarks


def _remarks_on_papers(result: dict[str, Any], title: str) -> list[str]:
    entry = RECIPES.get(title)
    match entry.published if entry else None:
        case Published(clean_accuracy=clean, robust_accuracy=robust):
            attacked = f"AutoAttack: published {robust:.2%}, here not judged yet"
            return [f"{_beside('clean', clean, result['clean_accuracy'])}; {attacked}"]
        case PublishedAccuracy(accuracy=accuracy):
            return [_beside("accuracy", accuracy, result["clean_accuracy"])]
        case _:
            return []


def _remarks_on_distilling(result: dict[str, Any]) -> list[str]:
    """Whom it comes from, and what it took."""
    extra = result["extra_parameters"]
    cost = f"{1000 * result['seconds_per_iteration']:.3g} ms per iteration"
    beside = f", {extra:,} parameters learnt beside the student" if extra else ""
    return [f"teacher {escape(result['teacher'])}: {result['teacher_accuracy']:.2%}; {cost}{beside}"]


def _beside(what: str, published: float, here: float) -> str:
    return f"{what}: published {published:.2%}, here {here:.2%} ({100 * (here - published):+.2f})"
