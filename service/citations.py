"""How to cite an entry, as BibTeX."""

import re
import unicodedata
from collections.abc import Mapping

from service.exports import day, tex
from service.rows import Row
from service.tables import Job
from service.wording import percent

_UNPUBLISHED = ("arxiv", "openreview", "github")
_JOURNALS = ("tmlr", "simods", "pattern recognition", "jmlr", "tpami")
_ARXIV = re.compile(r"https?://arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})")


def bibtex(row: Row, address: str) -> str:
    """The paper of a published row, or, where none is known, the place where its number was read."""
    numbers = f"{percent(row.robust_accuracy)} percent robust accuracy on {row.board.title}"
    fields = {
        "title": row.title or row.name,
        "author": _authors(row.authors) if row.authors else None,
        **_venue(row),
        "year": str(row.year) if row.year else None,
        "url": row.url,
        **_eprint(row.url),
        "note": f"{numbers}, read in: {row.citation}; listed at {address}/entries/{row.entry}",
    }
    kind = "misc" if "howpublished" in fields else "article" if "journal" in fields else "inproceedings"
    return _entry(kind, _key(row), fields)


def measured_bibtex(row: Row, job: Job, address: str) -> str:
    """A number that this service measured: when, by what, and where it is to be seen."""
    versions = ((job.result or {}).get("provenance") or {}).get("versions") or {}
    made_by = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    measured = day(row.finished_at)
    interval = row.robust_interval
    return _entry(
        "misc",
        f"dklbench-{row.entry}",
        {
            "title": f"Robust accuracy of {row.name} ({row.architecture}) on {row.board.title}",
            "author": "{dkl-bench}",
            "year": measured[:4] if measured else None,
            "url": f"{address}/entries/{row.entry}",
            "note": f"{percent(row.robust_accuracy)} percent"
            + (f" (95 percent interval {percent(interval[0])} to {percent(interval[1])})" if interval else "")
            + f" on {row.images} images, {row.suite}, measured {measured} by {row.engine or 'dkl-bench'}"
            + (f" with {made_by}" if made_by else ""),
        },
    )


def _entry(kind: str, key: str, fields: Mapping[str, str | None]) -> str:
    """Values in braces; a title in two pairs, which keep its capitals."""
    lines = [f"  {field} = {{{_value(field, text)}}}" for field, text in fields.items() if text]
    return f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}\n"


def _value(field: str, text: str) -> str:
    match field:
        case "title":
            return f"{{{tex(_unbraced(text))}}}"
        case "author" if text == "{dkl-bench}":
            return text
        case "url":
            return "".join(letter for letter in text if letter not in "{}\\%")
        case _:
            return tex(_unbraced(text))


def _unbraced(text: str) -> str:
    """BibTeX counts braces, escaped ones too."""
    return text.translate(str.maketrans("{}", "()"))


def _key(row: Row) -> str:
    """RobustBench's manner: the first author's family name, the year, the title's first word."""
    if not (row.authors and row.year and row.title):
        return _word(row.entry)
    first = _authors(row.authors).partition(" and ")[0]
    family = first.partition(",")[0] if "," in first else first.rpartition(" ")[2]
    return _word(f"{family}{row.year}{row.title.split()[0]}")


def _word(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub("[^A-Za-z0-9-]+", "", plain) or "entry"


def _authors(text: str) -> str:
    """Names joined with "and", however the source joins them: with commas, or as BibTeX has it already."""
    parts = re.split(r"\s+and\s+", text.strip())
    if len(parts) > 1 and all(part.count(",") == 1 for part in parts):
        return " and ".join(parts)  # Family, Given and Family, Given
    names = [name.strip() for part in parts for name in part.split(",")]
    return " and ".join("others" if name in {"et al.", "et al"} else name for name in names if name)


def _venue(row: Row) -> dict[str, str | None]:
    venue = (row.venue or "").casefold()
    if not venue or venue.startswith(_UNPUBLISHED):
        return {"howpublished": row.venue or row.citation or "unpublished"}
    return {"journal" if venue.startswith(_JOURNALS) else "booktitle": row.venue}


def _eprint(url: str | None) -> dict[str, str | None]:
    match = _ARXIV.match(url or "")
    return {"eprint": match[1], "archiveprefix": "arXiv"} if match else {}
