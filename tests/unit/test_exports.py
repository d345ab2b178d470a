"""Rows as CSV, LaTeX and BibTeX: what a spreadsheet, LaTeX and BibTeX make of hostile texts too."""

import csv
import io
import re

import pytest

from dkl.flags import pack
from service.citations import bibtex, measured_bibtex
from service.exports import NoFlagsError, csv_of, flags_csv, tex, tex_row, tex_table
from service.reported import packaged
from service.rows import Board, Row
from service.tables import Job

ADDRESS = "https://bench.example.org"
PUBLISHED = packaged().rows


def row(**changes: object) -> Row:
    plain = Row(
        entry="0123456789ab",
        rank=3,
        name="ikl-at-cifar10",
        source="measured",
        board=Board(dataset="cifar10", threat_model="Linf", eps=8 / 255),
        eps=8 / 255,
        architecture="WRN-34-10",
        clean_accuracy=0.85314,
        robust_accuracy=0.57096,
        best_known_accuracy=0.57096,
        robust_interval=(0.56, 0.58),
        images=1000,
        suite="AutoAttack standard",
        unreliable=False,
        engine="dkl-bench 0.1.0",
        job_id="0123456789ab",
        finished_at=1_767_225_600.0,
    )
    return plain.model_copy(update=changes)


def job(**result: object) -> Job:
    return Job(id="0123456789ab", kind="evaluate", recipe={"sample": "first"}, result=result)


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


# --- CSV ----------------------------------------------------------------------------------------------------


def test_a_line_has_every_number_of_the_row() -> None:
    (line,) = read(csv_of([row()]))
    assert (line["rank"], line["entry"], line["dataset"]) == ("3", "0123456789ab", "cifar10")
    assert float(line["robust_accuracy"]) == 0.57096
    assert (line["robust_low"], line["robust_high"], line["clean_low"]) == ("0.56", "0.58", "")
    assert (line["unreliable"], line["extra_data"]) == ("0", "")
    assert (line["source"], line["date"]) == ("measured", "2026-01-01")


def test_published_rows_come_back_as_they_are() -> None:
    lines = read(csv_of(list(PUBLISHED.values())))
    assert len(lines) == len(PUBLISHED)
    for line, expected in zip(lines, PUBLISHED.values(), strict=True):
        assert (line["name"], line["title"]) == (expected.name, expected.title or "")
        assert (line["note"], line["authors"]) == (expected.note or "", expected.authors or "")
        assert float(line["best_known_accuracy"]) == expected.best_known_accuracy


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_is_a_formula(start: str) -> None:
    (line,) = read(csv_of([row(name=f'{start}HYPERLINK("https://evil.example")', note=f"{start}1,2")]))
    assert line["name"].startswith("'")
    assert line["note"].startswith("'")


def test_commas_quotes_and_letters_of_all_kinds_stay() -> None:
    (line,) = read(csv_of([row(name='a, "b"; ε = 8/255')]))
    assert line["name"] == 'a, "b"; ε = 8/255'


# --- flags --------------------------------------------------------------------------------------------------


def test_a_line_per_image() -> None:
    flags = {"data_sha256": "d" * 64, "clean": pack([True, True, False]), "robust": pack([True, False, False])}
    assert read(flags_csv(job(images=3, flags=flags), "e")) == [
        {"row": "0", "position": "0", "clean": "1", "robust": "1"},
        {"row": "1", "position": "1", "clean": "1", "robust": "0"},
        {"row": "2", "position": "2", "clean": "0", "robust": "0"},
    ]
    sampled = job(images=3, flags=flags)
    sampled.recipe = {"sample": "random"}
    assert [line["position"] for line in read(flags_csv(sampled, "e"))] == ["", "", ""]


def test_without_verdicts_the_reason_is_told() -> None:
    with pytest.raises(NoFlagsError, match="holds no verdicts per image"):
        flags_csv(job(images=3), "0123456789ab")
    with pytest.raises(NoFlagsError, match="published elsewhere"):
        flags_csv(None, "paper-x")


# --- LaTeX --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("50% of $1 & #2_3", r"50\% of \$1 \& \#2\_3"),
        ("a^b~c<d>e|f", r"a\textasciicircum{}b\textasciitilde{}c\textless{}d\textgreater{}e\textbar{}f"),
        ("two\nlines", "two lines"),
        ("ε", "ε"),
    ],
)
def test_nothing_is_a_command_for_latex(text: str, escaped: str) -> None:
    assert tex(text) == escaped


def test_a_row_is_a_line_of_a_table() -> None:
    comment, line = tex_row(row(name="WRN_34 & co")).splitlines()
    assert comment.startswith("% Rank & Method & Clean & Robust")
    assert line == (r"3 & WRN\_34 \& co & 85.31 & 57.10 & 56.00--58.00 & 57.10 & 1000 & WRN-34-10 & measured \\")


def test_all_lines_have_as_many_cells_as_the_table() -> None:
    lines = tex_table(list(PUBLISHED.values())).splitlines()
    columns = next(re.findall(r"\{tabular\}\{(\w+)\}", line)[0] for line in lines if "begin" in line)
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == len(PUBLISHED) + 1
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {len(columns)}


# --- BibTeX -------------------------------------------------------------------------------------------------


def fields(text: str) -> dict[str, str]:
    assert text.count("{") == text.count("}")
    return {m[1]: m[2] for m in re.finditer(r"^  (\w+) = \{(.*)\},?$", text, re.MULTILINE)}


def test_a_paper_is_cited_as_where_it_appeared() -> None:
    text = bibtex(PUBLISHED["robustbench-cifar10-Linf-Cui2023Decoupled_WRN-28-10"], ADDRESS)
    assert text.startswith("@inproceedings{Cui2024Decoupled,\n")
    found = fields(text)
    assert found["title"] == "{Decoupled Kullback-Leibler Divergence Loss}"
    assert found["author"].startswith("Jiequan Cui and Zhuotao Tian and ")
    assert (found["booktitle"], found["year"], found["eprint"]) == ("NeurIPS 2024", "2024", "2305.13948")
    assert "67.73 percent robust accuracy on CIFAR-10, Linf, eps 8/255, read in: RobustBench" in found["note"]


@pytest.mark.parametrize(
    ("entry", "kind", "authors"),
    [
        ("robustbench-cifar10-corruptions-Erichson2022NoisyMix", "misc", "Ziang Cao and Michael W. Mahoney"),
        ("robustbench-cifar10-Linf-Chen2020Adversarial", "inproceedings", "Sijia Liu and Shiyu Chang"),
        ("robustbench-cifar10-Linf-Cui2020Learnable_34_10", "inproceedings", "Liwei Wang and Jiaya Jia"),
        ("robustbench-imagenet-Linf-Bai2024MixedNUTS", "article", "Yatong Bai and Mo Zhou"),
        ("robustbench-cifar10-Linf-Standard", "misc", None),
    ],
)
def test_kinds_and_authors(entry: str, kind: str, authors: str | None) -> None:
    text = bibtex(PUBLISHED[entry], ADDRESS)
    assert text.startswith(f"@{kind}{{")
    assert authors is None or authors in fields(text)["author"]


def test_authors_in_bibtex_s_own_manner_stay_so() -> None:
    kundu = next(r for r in PUBLISHED.values() if "Kundu, Souvik and" in (r.authors or ""))
    assert fields(bibtex(kundu, ADDRESS))["author"].startswith("Kundu, Souvik and Nazemi, Mahdi and ")


def test_every_citation_has_a_key_and_balanced_braces() -> None:
    for published in PUBLISHED.values():
        text = bibtex(published, ADDRESS)
        assert re.match(r"@\w+\{[A-Za-z0-9-]+,\n", text), text
        assert fields(text)["title"]
        assert " and and " not in text


def test_braces_in_a_title_do_not_end_it() -> None:
    text = bibtex(row(source="published", title="A } and { \\ %", url="https://e.org/}"), ADDRESS)
    assert fields(text)["title"] == r"{A ) and ( \textbackslash{} \%}"
    assert fields(text)["url"] == "https://e.org/"


def test_a_measured_number_is_cited_with_address_date_and_versions() -> None:
    judged = job(provenance={"versions": {"torch": "2.11.0", "dkl-bench": "0.1.0"}})
    found = fields(measured_bibtex(row(), judged, ADDRESS))
    assert found["url"] == f"{ADDRESS}/entries/0123456789ab"
    assert found["year"] == "2026"
    for part in ("57.10 percent", "56.00 to 58.00", "1000 images", "2026-01-01", "torch 2.11.0"):
        assert part in found["note"]
