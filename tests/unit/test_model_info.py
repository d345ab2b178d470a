"""RobustBench's files: what is read from them, what is refused, and what is written for it to read."""

import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.in_print import packaged_documents
from service.model_info import ModelInfo, of_row, why_left_out
from service.model_info_folder import MOST_BYTES, read_dir, write_dir
from service.plain_text import plain_text
from service.reported import packaged
from service.rows import Board, Row

FILE = {
    "link": "https://arxiv.org/abs/1905.10510",
    "name": "A &amp; B: robustness",
    "authors": "Anna Arm, Bob Beam",
    "additional_data": False,
    "number_forward_passes": 1,
    "dataset": "cifar10",
    "venue": "GitHub,<br>Sep 2019",
    "architecture": "WideResNet-34-10",
    "eps": "8/255",
    "clean_acc": "79.28",
    "reported": "null",
    "autoattack_acc": "18.50",
    "external": "",
    "footnote": None,
}
PLACE = {"dataset": "cifar10", "threat_model": "Linf", "key": "Arm2019AB"}


def read(**changes: object) -> ModelInfo:
    return ModelInfo.model_validate({**FILE, **PLACE, **changes})


def measured(**changes: object) -> Row:
    row = Row(
        entry="0123456789ab",
        name="ikl-at-cifar10 <run>",
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
    )
    return row.model_copy(update=changes)


# --- texts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fragment", "seen"),
    [
        ("GitHub,<br>Sep 2019", "GitHub, Sep 2019"),
        ("one<br>two<br/>three.", "one. two. three."),
        ("a &lt; b &amp; c", "a < b & c"),
        ("&lt;script&gt;alert(1)&lt;/script&gt;", "<script>alert(1)</script>"),  # a text about a script
        ("x<script>alert(1)</script>y<style>p {}</style>z", "xyz"),
        ('<a href="https://e.org/x">this</a> one', "this (https://e.org/x) one"),
        ('<a href="javascript:alert(1)">this</a> one', "this one"),
        ('<img src=x onerror="alert(1)">see', "see"),
        (r"Uses \(\ell_{\infty} \) = 0.031", "Uses Linf = 0.031"),
        ("two\nlines\x00 and\u202e more\ud800", "two lines and more"),
    ],
)
def test_a_text_is_what_a_reader_sees(fragment: str, seen: str) -> None:
    assert plain_text(fragment) == seen


# --- a document ---------------------------------------------------------------------------------------------


def test_a_file_is_read_as_robustbench_means_it() -> None:
    info = read()
    assert (info.name, info.venue) == ("A & B: robustness", "GitHub, Sep 2019")
    assert (info.eps, info.clean_acc, info.autoattack_acc) == (8 / 255, 79.28, 18.5)
    assert (info.reported, info.external, info.footnote, info.unreliable) == (None, None, None, None)
    assert info.entry == "robustbench-cifar10-Linf-Arm2019AB"
    assert info.path == "cifar10/Linf/Arm2019AB.json"


@pytest.mark.parametrize(("written", "eps"), [("8/255", 8 / 255), ("0.031", 0.031), (0.5, 0.5), ("0.5", 0.5)])
def test_a_radius_may_be_written_in_four_ways(written: object, eps: float) -> None:
    assert read(eps=written).eps == eps


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clean_acc": "101"}, "less than or equal to 100"),
        ({"clean_acc": "-1"}, "greater than or equal to 0"),
        ({"clean_acc": "nan"}, "finite"),
        ({"autoattack_acc": "null"}, "autoattack_acc must be filled in for a board of Linf"),
        ({"eps": None}, "eps must be filled in"),
        ({"eps": "1/0"}, "a fraction such as '8/255', not '1/0'"),
        ({"eps": "-8/255"}, "greater than 0"),
        ({"threat_model": "corruptions"}, "corruptions_acc must be filled in for a board of corruptions"),
        ({"threat_model": "L7"}, "Linf"),
        ({"link": "javascript:alert(1)"}, "begins with https://"),
        ({"link": "https://e.org/<script>\n"}, "begins with https://"),
        ({"key": "../../etc/passwd"}, "pattern"),
        ({"key": ".hidden"}, "pattern"),
        ({"dataset": "cifar-10"}, "pattern"),
        ({"name": "x" * 301}, "at most 300"),
        ({"number_forward_passes": 0}, "greater than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        read(**changes)


def test_no_two_files_are_called_the_same() -> None:
    odd = read(dataset="x_linf", key="y")
    assert odd.entry == "robustbench-x_linf-Linf-y"
    assert read(dataset="x", key="Linf-y").entry == "robustbench-x-Linf-Linf-y"


def test_what_is_written_is_read_as_the_same() -> None:
    for info in packaged_documents():
        assert ModelInfo.model_validate(json.loads(json.dumps(info.stored()))) == info


def test_robustbench_s_manner_of_writing() -> None:
    document = read(reported="52.4", footnote="a &lt; b").document()
    assert (document["clean_acc"], document["reported"], document["eps"]) == ("79.28", "52.40", "8/255")
    assert document["footnote"] == "a &lt; b"  # its template takes texts for HTML
    assert "external" not in document
    assert "threat_model" not in document
    assert read(eps=0.031).document()["eps"] == "0.031"


# --- a row --------------------------------------------------------------------------------------------------


def test_a_measured_row_as_robustbench_would_have_it() -> None:
    info = of_row(measured(), "https://bench.example.org")
    document = info.document()
    assert info.path == "cifar10/Linf/ikl-at-cifar10-run_0123456789ab.json"
    assert (document["clean_acc"], document["autoattack_acc"], document["eps"]) == ("85.31", "57.10", "8/255")
    assert document["name"] == "ikl-at-cifar10 &lt;run&gt;"
    assert document["link"] == "https://bench.example.org/entries/0123456789ab"
    assert "1,000 images" in document["footnote"]
    assert "56.00 to 58.00 %" in document["footnote"]
    assert "external" not in document
    assert "additional_data" not in document  # not known


def test_a_lower_known_accuracy_is_the_external_one() -> None:
    document = of_row(measured(best_known_accuracy=0.5), "https://e.org").document()
    assert (document["autoattack_acc"], document["external"]) == ("57.10", "50.00")


def test_a_row_of_corruptions_has_their_fields() -> None:
    board = Board(dataset="cifar10", threat_model="corruptions", eps=None)
    document = of_row(measured(board=board, eps=None), "https://e.org").document()
    assert document["corruptions_acc"] == "57.10"
    assert document["eps"] is None
    assert "autoattack_acc" not in document


def test_every_published_row_can_be_written() -> None:
    for row in packaged().rows.values():
        info = of_row(row, "https://e.org")
        assert info.clean_acc == pytest.approx(100 * row.clean_accuracy)
        assert not row.entry.startswith("robustbench-") or info.entry == row.entry
        assert not row.entry.startswith("robustbench-") or why_left_out(row) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"eps": 0.031}, None),
        ({"eps": 4 / 255}, "no board"),
        ({"suite": "AutoAttack standard, audited"}, None),
        ({"suite": "AutoAttack rand"}, "boards are about AutoAttack standard"),
        ({"suite": "custom"}, "boards are about AutoAttack standard"),
        ({"board": Board(dataset="digits", threat_model="Linf", eps=0.2), "eps": 0.2}, "no board"),
        ({"board": Board(dataset="cifar100", threat_model="L2", eps=0.5), "eps": 0.5}, "no board"),
        ({"board": Board(dataset="cifar10", threat_model="corruptions", eps=None), "eps": None}, None),
    ],
)
def test_what_robustbench_has_no_place_for_is_left_out(changes: dict[str, object], reason: str | None) -> None:
    why = why_left_out(measured(**changes))
    assert (why is None) if reason is None else (why is not None and reason in why)


# --- a folder -----------------------------------------------------------------------------------------------


def put(folder: Path, path: str, content: object) -> None:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def test_a_folder_is_read_and_each_refusal_named(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model_info", tmp_path / "outside.json"
    outside.write_text(json.dumps(FILE))
    put(folder, "cifar10/Linf/Good.json", FILE)
    put(folder, "cifar100/Linf/WrongDataset.json", FILE)
    put(folder, "cifar10/Linf/Odd.json", {**FILE, "autoattack_acc": "80"})
    put(folder, "cifar10/Linf/Cut.json", b'{"name": ')
    put(folder, "cifar10/Linf/Deep.json", b"[" * 60_000)
    put(folder, "cifar10/Linf/Latin.json", b'{"name": "\xe9"}')
    put(folder, "cifar10/Linf/List.json", [FILE])
    put(folder, "cifar10/Linf/Large.json", b" " * (MOST_BYTES + 1))
    put(folder, "cifar10/Linf/High.json", {**FILE, "clean_acc": "179"})
    put(folder, "cifar10/L9/Norm.json", FILE)
    put(folder, "cifar10/Linf/two words.json", FILE)
    put(folder, "cifar10/corruptions/unaggregated_results.csv", b"a,b")
    (folder / "cifar10/Linf/Out.json").symlink_to(outside)
    (folder / "cifar10/Linf/Lost.json").symlink_to(folder / "nowhere.json")
    (folder / "cifar10/Linf/Folder.json").mkdir()
    os.mkfifo(folder / "cifar10/Linf/Pipe.json")
    found = read_dir(folder)
    assert [info.path for info in found.entries] == [
        "cifar10/Linf/Good.json",
        "cifar10/Linf/Odd.json",
        "cifar100/Linf/WrongDataset.json",
    ]
    assert {remark.of: remark.sentence for remark in found.remarks} == {
        "cifar10/Linf/Odd.json": "the robust accuracy 80 is higher than the clean one 79.28",
        "cifar100/Linf/WrongDataset.json": "it says dataset 'cifar10'; the folder's, cifar100, is taken",
    }
    refused = {remark.of.rpartition("/")[2]: remark.sentence for remark in found.refused}
    assert refused.pop("High.json").startswith("clean_acc: ")
    assert refused.pop("Norm.json").startswith("threat_model: ")
    assert refused.pop("two words.json").startswith("key: ")
    assert refused == {
        "Cut.json": "it is no JSON document in UTF-8",
        "Deep.json": "it is no JSON document in UTF-8",
        "Latin.json": "it is no JSON document in UTF-8",
        "List.json": "it is no JSON object",
        "Large.json": "it is larger than 64 KiB",
        "Out.json": "it is a link that leads out of the folder",
        "Lost.json": "it is no file",
        "Folder.json": "it is no file",
        "Pipe.json": "it is no file",
    }


def test_a_wrong_folder_is_told_with_the_right_one(tmp_path: Path) -> None:
    put(tmp_path, "model_info/cifar10/Linf/Good.json", FILE)
    with pytest.raises(ValueError, match=r"did you mean .*model_info\?"):
        read_dir(tmp_path)
    with pytest.raises(ValueError, match="give a folder like RobustBench's model_info"):
        read_dir(tmp_path / "elsewhere")


def test_all_of_robustbench_can_be_written_and_read_again(tmp_path: Path) -> None:
    write_dir(tmp_path, list(packaged_documents()))
    found = read_dir(tmp_path)
    assert (found.refused, found.remarks) == ([], [])
    assert {info.entry: info for info in found.entries} == {info.entry: info for info in packaged_documents()}
    again = json.loads((tmp_path / "cifar10/Linf/Xiao2020Enhancing.json").read_text())
    assert (again["external"], again["unreliable"], again["eps"]) == ("7.40", True, "0.031")
