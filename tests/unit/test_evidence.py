"""Evidence: files that come back whole or are refused, and claims that the verifier sees through one by one."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from trials import SHA256, evaluation, loaded
from witness import evidence

from dkl.batches import as_pixels
from dkl.datasets import Arrays
from dkl.events import Progress
from dkl.evidence import (
    About,
    Evidence,
    EvidenceError,
    data_sha256,
    pictured,
    read_evidence,
    write_evidence,
)
from dkl.recipes import fingerprint
from dkl.reverify import VerificationReport, verify_evidence

ARRAYS = [field.name for field in fields(Evidence) if field.name != "about"]


def assert_same(a: Evidence, b: Evidence) -> None:
    assert a.about == b.about
    for name in ARRAYS:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y, strict=True)


# --- files ------------------------------------------------------------------------------------------------


@st.composite
def some_evidence(draw: st.DrawFn) -> Evidence:
    count = draw(st.integers(1, 8))
    radii = sorted(draw(st.sets(st.floats(0.001, 0.9), min_size=1, max_size=4)))
    at = draw(st.lists(st.integers(-1, len(radii) - 1), min_size=count, max_size=count))
    clean = "".join("1" if i >= 0 or draw(st.booleans()) else "0" for i in at)
    images = sorted(draw(st.sets(st.integers(0, 10**9), min_size=count, max_size=count)))
    in_8_bits = draw(st.sets(st.integers(0, count - 1)))
    made = evidence(
        clean=clean, broken_at=at, images=images, in_8_bits=sorted(in_8_bits), radii=radii,
        norm=draw(st.sampled_from(["Linf", "L2", "L1"])),
    )  # fmt: skip
    margin = draw(st.lists(st.floats(width=32, allow_infinity=False), min_size=count, max_size=count))
    return replace(made, margin=np.array(margin, np.float32))


@given(some_evidence())
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_evidence_comes_back_as_it_was(tmp_path: Path, made: Evidence) -> None:
    path = tmp_path / "evidence.safetensors"
    sha256 = write_evidence(path, made)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    read = read_evidence(path)
    assert_same(made, read)
    assert write_evidence(path, read) == sha256
    assert os.listdir(tmp_path) == ["evidence.safetensors"]


def test_equal_evidence_is_equal_bytes_in_every_process(tmp_path: Path) -> None:
    expected = write_evidence(tmp_path / "here", evidence())
    script = (
        "import sys; from pathlib import Path; from dkl.evidence import write_evidence\n"
        "from witness import evidence; print(write_evidence(Path(sys.argv[1]), evidence()))\n"
        "assert 'torch' not in sys.modules"
    )
    tests = Path(__file__).parent.parent
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{tests}:{tests.parent}"}
        command = [sys.executable, "-c", script, str(tmp_path / "there")]
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert printed.strip() == expected
    one_nan, another = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    a, b = (replace(evidence(), margin=np.full(5, nan, np.float32)) for nan in (one_nan, another))
    assert write_evidence(tmp_path / "a", a) == write_evidence(tmp_path / "b", b) != expected


def test_a_recipe_of_ours_is_taken_with_its_own_fingerprint() -> None:
    recipe = evaluation(norm="L2", eps=0.5, curve=[0.25])
    made = About(
        recipe=recipe.model_dump(mode="json"), fingerprint=fingerprint(recipe), checkpoint_sha256=SHA256,
        data_sha256=SHA256, stages=(), engine="dkl 1", versions={},
    )  # fmt: skip
    assert made.question.threat == recipe.threat
    assert made.question.radii() == recipe.radii() == (0.25, 0.5)


@given(position=st.integers(0), value=st.integers(0, 255), cut=st.booleans())
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_a_changed_byte_is_refused_or_is_still_evidence(
    tmp_path: Path, position: int, value: int, cut: bool
) -> None:
    path = tmp_path / "evidence.safetensors"
    write_evidence(path, evidence())
    content = bytearray(path.read_bytes())
    position %= len(content)
    content[position] = value
    path.write_bytes(content[:position] if cut else content)
    try:
        read = read_evidence(path)
    except EvidenceError as error:
        sentence = str(error)
    else:
        write_evidence(path, read)  # what is taken makes sense
        sentence = "" if cut else str(path)
    assert str(path) in sentence
    assert "\n" not in sentence


@given(st.binary(max_size=300))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evidence.safetensors"
    path.write_bytes(content)
    with pytest.raises(EvidenceError, match="is not a safetensors file"):
        read_evidence(path)


def raw(path: Path, document: str | None = None, **arrays: np.ndarray) -> Path:
    """Evidence as another program might write it, with some arrays or the metadata replaced."""
    made = evidence()
    tensors = {name: getattr(made, name) for name in ARRAYS} | arrays
    tensors = {name: array for name, array in tensors.items() if array is not None}
    document = made.about.model_dump_json() if document is None else document
    safetensors.numpy.save_file(tensors, path, metadata={"dkl": document})
    return path


def test_what_another_program_writes_is_read(tmp_path: Path) -> None:
    assert_same(read_evidence(raw(tmp_path / "raw")), evidence())


SINCE_FORMAT_2 = ("predicted", "predicted_adv", "rows_clean", "x_clean")


def test_a_file_of_format_1_is_read_and_stays_what_it_is(tmp_path: Path) -> None:
    document = json.dumps(evidence().about.model_dump(mode="json") | {"format": 1})
    read = read_evidence(raw(tmp_path / "raw", document, **dict.fromkeys(SINCE_FORMAT_2)))
    assert all(getattr(read, name) is None for name in SINCE_FORMAT_2)
    sha256 = write_evidence(tmp_path / "again", read)
    assert sha256 == write_evidence(tmp_path / "cut", evidence().in_format_1())
    assert_same(
        replace(read, about=evidence().about, **{n: getattr(evidence(), n) for n in SINCE_FORMAT_2}), evidence()
    )


@pytest.mark.parametrize(
    ("format_", "sentence"), [(1, r"format 1 has 14 arrays; missing: \[\]"), (2, "format 2 has 18")]
)
def test_each_format_has_its_arrays(tmp_path: Path, format_: int, sentence: str) -> None:
    document = json.dumps(evidence().about.model_dump(mode="json") | {"format": format_})
    without = dict.fromkeys(SINCE_FORMAT_2) if format_ == 2 else {}
    with pytest.raises(EvidenceError, match=sentence):
        read_evidence(raw(tmp_path / "raw", document, **without))
    odd = evidence().in_format_1() if format_ == 2 else evidence()
    about = odd.about.model_copy(update={"format": format_})
    with pytest.raises(EvidenceError, match=sentence):
        write_evidence(tmp_path / "written", replace(odd, about=about))


# --- the clean pictures -----------------------------------------------------------------------------------


def test_which_pictures_are_kept_follows_from_the_data() -> None:
    rows = pictured("d" * 64, 10_000, (3, 32, 32))
    assert rows.dtype == np.int32
    assert len(rows) == 256
    assert (np.diff(rows) > 0).all()
    assert rows[-1] < 10_000
    assert rows[:6].tolist() == [71, 218, 229, 325, 392, 411]  # for ever: files are checked against it
    assert not np.array_equal(rows, pictured("e" * 64, 10_000, (3, 32, 32)))


@pytest.mark.parametrize(
    ("count", "shape", "kept"),
    [(100, (3, 32, 32), 100), (5000, (3, 224, 224), 111), (3, (1, 4096, 4096), 1), (3, (1, 4097, 4096), 0)],
)
def test_pictures_are_few_and_small(count: int, shape: tuple[int, ...], kept: int) -> None:
    assert len(pictured("d" * 64, count, shape)) == kept


def test_evidence_of_images_too_large_to_keep_comes_back(tmp_path: Path) -> None:
    none = {"rows8": np.zeros(0, np.int32), "x8": np.zeros((0, 1, 4097, 4096), np.uint8)}
    none |= {"rows32": np.zeros(0, np.int32), "x32": np.zeros((0, 1, 4097, 4096), np.float32)}
    none |= {"rows_clean": np.zeros(0, np.int32), "x_clean": np.zeros((0, 1, 4097, 4096), np.uint8)}
    made = replace(evidence(broken_at=(-1,) * 5), **none)
    write_evidence(tmp_path / "evidence", made)
    assert_same(read_evidence(tmp_path / "evidence"), made)


# --- refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"margin": None}, r"missing: \['margin'\], unexpected: \[\]"),
        ({"extra": np.zeros(3)}, r"missing: \[\], unexpected: \['extra'\]"),
        ({"labels": np.zeros(4, np.int64)}, r"labels must be I64 \(5,\), found I64 \(4,\)"),
        ({"labels": np.zeros(5, np.int32)}, r"labels must be I64 \(5,\), found I32 \(5,\)"),
        ({"labels": np.zeros(5, np.complex64)}, "labels must be I64"),
        ({"images": np.array(3)}, r"images must be I64 \(0,\), found I64 \(\)"),
        ({"rows8": np.zeros((2, 2), np.int32)}, "rows8 must be"),
        ({"x8": np.zeros((2, 6), np.uint8)}, "channels, height and width"),
        ({"x8": np.zeros((3, 1, 2, 3), np.uint8)}, r"x8 must be U8 \(2, 1, 2, 3\)"),
        ({"x32": np.zeros((1, 1, 3, 2), np.float32)}, r"x32 must be F32 \(1, 1, 2, 3\)"),
        ({"predicted": np.zeros(5, np.int64)}, r"predicted must be I32 \(5,\), found I64"),
        ({"predicted_adv": np.zeros(6, np.int32)}, r"predicted_adv must be I32 \(5,\), found I32 \(6,\)"),
        ({"x_clean": np.zeros((4, 1, 2, 3), np.uint8)}, r"x_clean must be U8 \(5, 1, 2, 3\)"),
        ({"x_clean": np.zeros((5, 1, 3, 2), np.uint8)}, r"x_clean must be U8 \(5, 1, 2, 3\)"),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path: Path, arrays: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EvidenceError, match=sentence):
        read_evidence(raw(tmp_path / "raw", **arrays))


def test_no_images_are_no_evidence(tmp_path: Path) -> None:
    made = evidence(broken_at=(-1,) * 5)
    nothing = {name: getattr(made, name)[:0] for name in ARRAYS if name != "radii"}
    with pytest.raises(EvidenceError, match="at least one image"):
        read_evidence(raw(tmp_path / "raw", **nothing))
    impossible = {"rows8": np.zeros(0, np.int32), "x8": np.zeros((0, 1, 2, 2**40), np.uint8)}
    impossible |= {"rows32": np.zeros(0, np.int32), "x32": np.zeros((0, 1, 2, 2**40), np.float32)}
    with pytest.raises(EvidenceError, match=r"1 to 65535, found \(1, 2, 1099511627776\)"):
        read_evidence(raw(tmp_path / "raw", **impossible))


def changed(name: str, row: int, value: float) -> dict[str, np.ndarray]:
    array = getattr(evidence(), name).copy()
    array[row] = value
    return {name: array}


@pytest.mark.parametrize(
    ("arrays", "rule"),
    [
        (changed("radii", 1, 0.3), r"the radii of the recipe are \[0.1, 0.2\], found \[0.1, 0.3\]"),
        (changed("radii", 1, float("nan")), "the radii of the recipe"),
        (changed("images", 0, -1), "positions in ascending order"),
        (changed("images", 1, 3), "positions in ascending order"),
        (changed("labels", 4, -1), "labels must not be negative"),
        (changed("broken_at", 1, 2), r"broken_at must be -1..1"),
        (changed("broken_at", 1, -2), r"broken_at must be -1..1"),
        (changed("stage", 1, 3), r"stage must be -1..2"),
        (changed("step", 1, -2), "at least -1"),
        (changed("margin", 1, float("inf")), "margin must be a number or NaN"),
        (changed("rows8", 1, 5), "rows8 must be ascending and below 5"),
        (changed("rows8", 0, -1), "rows8 must be ascending"),
        (changed("rows8", 0, 3), "rows8 must be ascending"),
        (changed("rows32", 0, 5), "rows32 must be ascending and below 5"),
        (changed("clean_correct", 1, False), "broken was classified correctly before"),
        (changed("stage", 1, -1), "broken names its stage"),
        (changed("step", 0, 3), "not broken has no stage"),
        (changed("target", 1, 1), "aims at another class than the label"),
        (changed("stage", 1, 1), "with at least its radius"),
        (changed("stage", 2, 0), "with at least its radius"),
        (changed("predicted", 4, -2), "predicted must be at least -1"),
        (changed("predicted", 0, 1), "classified correctly where its label is predicted"),
        (changed("predicted", 4, 1), "classified correctly where its label is predicted"),
        (changed("predicted_adv", 1, 1), "of another class than the label"),
        (changed("predicted_adv", 1, -1), "of another class than the label"),
        (changed("predicted_adv", 0, 2), "not broken has no predicted_adv"),
        (changed("predicted_adv", 0, -2), "not broken has no predicted_adv"),
        (changed("rows_clean", 2, 3), "rows_clean are those that the data name"),
    ],
)
def test_evidence_that_contradicts_itself_is_neither_read_nor_written(
    tmp_path: Path, arrays: dict[str, np.ndarray], rule: str
) -> None:
    with pytest.raises(EvidenceError, match=rule):
        read_evidence(raw(tmp_path / "raw", **arrays))
    with pytest.raises(EvidenceError, match=rule):
        write_evidence(tmp_path / "written", replace(evidence(), **arrays))
    assert not (tmp_path / "written").exists()


def test_flags_that_are_no_flags_are_refused(tmp_path: Path) -> None:
    strange = np.array([1, 1, 1, 1, 2], np.uint8).view(np.bool_)
    with pytest.raises(EvidenceError, match="clean_correct must be 0 or 1"):
        read_evidence(raw(tmp_path / "raw", clean_correct=strange))


def test_metadata_that_describe_no_evaluation_are_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "raw", evidence().about.model_dump(mode="json")

    def recipe(**changes: Any) -> dict[str, Any]:
        document = good["recipe"] | changes
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        return {"recipe": document, "fingerprint": hashlib.sha256(canonical).hexdigest()}

    for changes, sentence in [
        ({"format": 3}, "format: Input should be 1 or 2"),
        ({"engine": 3}, "engine: Input should be a valid string"),
        ({"checkpoint_sha256": "short"}, "checkpoint_sha256: "),
        ({"fingerprint": "0" * 64}, r"the recipe has the fingerprint [0-9a-f]{64}, found 0000"),
        ({"unknown": 1}, "unknown: "),
        (recipe(dataset="npz:../../etc"), "the recipe is no evaluation's, dataset: unknown dataset"),
        (recipe(threat={"norm": "L3", "eps": 1.0}), "the recipe is no evaluation's, threat.norm: "),
        (recipe(curve=[1.5]), "the recipe is no evaluation's, "),
        (recipe(seed=float("inf")), "JSON compliant"),
    ]:
        with pytest.raises(EvidenceError, match=sentence) as caught:
            read_evidence(raw(path, json.dumps(good | changes)))
        assert "\n" not in str(caught.value)
    for document in ("", "no json", "[]", "[" * 100_000, '{"recipe":' * 100_000, "9" * 10_000):
        with pytest.raises(EvidenceError, match="describe no evaluation"):
            read_evidence(raw(path, document))
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    with pytest.raises(EvidenceError, match="without the metadata 'dkl'"):
        read_evidence(path)


def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evidence.safetensors"
    entry = {"images": {"dtype": "I64", "shape": [2**40], "data_offsets": [0, 2**43]}}
    header = json.dumps(entry).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(EvidenceError, match="is not a safetensors file"):
        read_evidence(path)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_evidence(tmp_path / "evidence.safetensors")


# --- the verifier -----------------------------------------------------------------------------------------


class FirstPixel(torch.nn.Module):
    """Class 1 where the first pixel is above 1/2; logits are NaN where the last pixel is white."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        logits = torch.stack([torch.zeros(len(x)), torch.nan_to_num(x[:, 0]) - 0.5], dim=1)
        return torch.where(x[:, -1:] == 1, torch.nan, logits)


def first_pixels(*values: int) -> Arrays:
    images = np.full((len(values), 2, 3, 1), 100, np.uint8)
    images[:, 0, 0, 0] = values
    return Arrays(images, np.zeros(len(values), np.int64), classes=2)


TEST_SPLIT = first_pixels(0, 120, 100, 120, 255, 110, 125, 200)
"""Images 4 and 7 are misclassified."""


def pictures(images: np.ndarray) -> np.ndarray:
    """Of the six images below, all, as few as they are: uint8 (6, C, H, W)."""
    return images[[0, 1, 2, 3, 5, 7]].transpose(0, 3, 1, 2)


def honest(**changes: Any) -> Evidence:
    """Six images of the test split; rows 1, 3 (in 8 bits) and 4 (in 32) are broken, row 4 at 0.2 only."""
    images, at = np.array([0, 1, 2, 3, 5, 7]), [-1, 0, -1, 0, 1, -1]
    made = evidence(
        images=images.tolist(), clean="111110", broken_at=at, in_8_bits=(1, 3),
        data_sha256=data_sha256(TEST_SPLIT, images),
    )  # fmt: skip
    x = torch.from_numpy(TEST_SPLIT.images[images]).permute(0, 3, 1, 2)
    x8, x32 = x[[1, 3]].clone(), as_pixels(x[[4]])
    x8[:, 0, 0, 0], x32[:, 0, 0, 0] = 130, 0.6
    values = {
        "labels": np.zeros(6, np.int64),
        "x8": x8.numpy(),
        "x32": x32.numpy(),
        "predicted": np.array([0, 0, 0, 0, 0, 1], np.int32),
        "predicted_adv": np.array([-1, 1, -1, 1, 1, -1], np.int32),
        "x_clean": pictures(TEST_SPLIT.images),
    }
    return replace(made, **values | changes)


def checked(made: Evidence, **options: Any) -> VerificationReport:
    given = {"device": "cpu", "batch_size": 2} | options
    *progress, report = verify_evidence(made, loaded(FirstPixel(), classes=2), TEST_SPLIT, **given)
    assert all(isinstance(event, Progress) for event in progress)
    assert progress[-1].total == len(made.images) + len(made.rows8) + len(made.rows32)
    assert isinstance(report, VerificationReport)
    return report


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_honest_evidence_is_proved(batch_size: int) -> None:
    report = checked(honest(), batch_size=batch_size)
    assert report.ok
    assert report == VerificationReport(
        images=6, adversarial=3, in_8_bits=2, faults=0, sentences=(),
        radii=(0.1, 0.2), clean_accuracy=5 / 6, robust_accuracy=(3 / 6, 2 / 6),
    )  # fmt: skip


def test_evidence_of_format_1_is_proved_as_before() -> None:
    assert checked(honest().in_format_1()) == checked(honest())
    lie = replace(honest(), clean_correct=np.ones(6, np.bool_)).in_format_1()
    assert checked(lie).sentences == ("image 7 is said to be classified correctly, and is classified wrongly",)


def test_no_image_passes_the_model_twice() -> None:
    class Counted(FirstPixel):
        seen = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += len(x)
            return super().forward(x)

    model = Counted()
    list(verify_evidence(honest(), loaded(model, classes=2), TEST_SPLIT, device="cpu", batch_size=4))
    assert model.seen == 6 + 3


def with_pixel(array: str, place: tuple[int, ...], value: float) -> dict[str, np.ndarray]:
    changed_array = getattr(honest(), array).copy()
    changed_array[place] = value
    return {array: changed_array}


def second_proof_of_row_4() -> dict[str, np.ndarray]:
    second = honest().x8[:1].copy()
    second[0, 0, 0, 0] = 150
    return {"rows8": np.array([1, 3, 4], np.int32), "x8": np.concatenate([honest().x8, second])}


def without_row_4(**changes: Any) -> dict[str, Any]:
    return {"rows32": np.zeros(0, np.int32), "x32": np.zeros((0, 1, 2, 3), np.float32), **changes}


LIES: dict[str, tuple[dict[str, Any], str, float, tuple[float, float]]] = {
    "another label": (
        {"labels": np.array([0, 0, 0, 0, 0, 1])},
        "image 7 is labelled 1, the data set says 0", 5 / 6, (3 / 6, 2 / 6),
    ),
    "correct though it is not": (
        {"clean_correct": np.ones(6, np.bool_)},
        "image 7 is said to be classified correctly, and is classified wrongly", 5 / 6, (3 / 6, 2 / 6),
    ),
    "wrong though it is not": (
        {"clean_correct": np.array([0, 1, 1, 1, 1, 0], np.bool_)},
        "image 0 is said to be classified wrongly, and is classified correctly", 5 / 6, (3 / 6, 2 / 6),
    ),
    "broken without proof": (
        without_row_4(),
        "image 5 is said to be broken and has 0 adversarial images, not one", 5 / 6, (3 / 6, 3 / 6),
    ),
    "two proofs": (
        second_proof_of_row_4(),
        "image 5 is said to be broken and has 2 adversarial images, not one", 5 / 6, (3 / 6, 2 / 6),
    ),
    "a proof of nothing": (
        {"broken_at": np.array([-1, 0, -1, 0, -1, -1], np.int8)},
        "image 5 has an adversarial image and is not said to be broken", 5 / 6, (3 / 6, 3 / 6),
    ),
    "not finite": (
        with_pixel("x32", (0, 0, 0, 1), float("nan")),
        "image 5 has an adversarial image that holds values that are not finite", 5 / 6, (3 / 6, 3 / 6),
    ),
    "infinite": (
        with_pixel("x32", (0, 0, 0, 1), float("inf")),
        "image 5 has an adversarial image that holds values that are not finite", 5 / 6, (3 / 6, 3 / 6),
    ),
    "above white": (
        with_pixel("x32", (0, 0, 0, 1), 1.001),
        "image 5 has an adversarial image that leaves the pixel range [0, 1]", 5 / 6, (3 / 6, 3 / 6),
    ),
    "below black": (
        with_pixel("x32", (0, 0, 0, 1), -0.001),
        "image 5 has an adversarial image that leaves the pixel range [0, 1]", 5 / 6, (3 / 6, 3 / 6),
    ),
    "outside the ball": (
        with_pixel("x32", (0, 0, 0, 1), 100 / 255 + 0.201),
        "image 5 has an adversarial image that is farther from it than Linf 0.2", 5 / 6, (3 / 6, 3 / 6),
    ),
    "outside the ball, in 8 bits": (
        with_pixel("x8", (0, 0, 0, 1), 126),  # 26/255 away, above 0.1
        "image 1 has an adversarial image that is farther from it than Linf 0.1", 5 / 6, (4 / 6, 3 / 6),
    ),
    "inside the larger ball only": (
        {"broken_at": np.array([-1, 0, -1, 0, 0, -1], np.int8)} | with_pixel("x32", (0, 0, 0, 1), 0.55),
        "image 5 has an adversarial image that is farther from it than Linf 0.1", 5 / 6, (3 / 6, 3 / 6),
    ),
    "not fooled": (
        with_pixel("x8", (1, 0, 0, 0), 127),
        "image 3 has an adversarial image that is classified correctly", 5 / 6, (4 / 6, 3 / 6),
    ),
    "another class": (
        {"predicted": np.array([0, 0, 0, 0, 0, 2], np.int32)},
        "image 7 is said to be classified as class 2, and is classified as class 1", 5 / 6, (3 / 6, 2 / 6),
    ),
    "fooled into another class": (
        {"predicted_adv": np.array([-1, 1, -1, 2, 1, -1], np.int32)},
        "image 3 has an adversarial image that is said to be classified as class 2, and is classified as class 1",
        5 / 6, (3 / 6, 2 / 6),
    ),
    "fooled into another class, in 32 bits": (
        {"predicted_adv": np.array([-1, 1, -1, 1, 2, -1], np.int32)},
        "image 5 has an adversarial image that is said to be classified as class 2, and is classified as class 1",
        5 / 6, (3 / 6, 2 / 6),
    ),
    "another picture": (
        with_pixel("x_clean", (4, 0, 1, 1), 101),
        "image 5 has a clean picture that is not the data set's image", 5 / 6, (3 / 6, 2 / 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_is_seen_by_the_one_check_that_is_for_it(lie: str) -> None:
    changes, sentence, clean, robust = LIES[lie]
    report = checked(honest(**changes))
    assert report.sentences == (sentence,)
    assert report.faults == 1
    assert not report.ok
    assert report.clean_accuracy == clean
    assert report.robust_accuracy == pytest.approx(robust)


def test_logits_that_are_no_numbers_prove_nothing() -> None:
    white = with_pixel("x8", (0, 0, 1, 2), 255)
    wide = {"norm": "L1", "radii": (3.0, 4.0)}
    images = honest().images
    made = evidence(
        images=images.tolist(), clean="111110", broken_at=[-1, 0, -1, 0, 1, -1], in_8_bits=(1, 3),
        data_sha256=data_sha256(TEST_SPLIT, images), **wide,
    )  # fmt: skip
    made = replace(made, labels=honest().labels, x8=white["x8"], x32=honest().x32)
    report = checked(made.in_format_1())
    assert report.sentences == ("image 1 has an adversarial image that has logits that are not finite",)
    assert report.robust_accuracy == (4 / 6, 3 / 6)


def test_a_clean_image_without_finite_logits_is_not_classified_correctly() -> None:
    images = TEST_SPLIT.images.copy()
    images[0, 1, 2, 0] = 255
    split = Arrays(images, TEST_SPLIT.labels, 2)
    of_split = honest().about.model_copy(update={"data_sha256": data_sha256(split, honest().images)})
    lie = honest(about=of_split, x_clean=pictures(split.images))

    def sentences(made: Evidence) -> tuple[str, ...]:
        *_, report = verify_evidence(made, loaded(FirstPixel(), classes=2), split, device="cpu", batch_size=8)
        return report.sentences

    assert sentences(lie) == ("image 0 is said to be classified correctly, and is classified wrongly",)
    wrong = replace(lie, clean_correct=np.array([0, 1, 1, 1, 1, 0], np.bool_))
    assert sentences(wrong) == ("image 0 is said to be classified as class 0, and is classified as no class",)
    assert sentences(replace(wrong, predicted=np.array([-1, 0, 0, 0, 0, 1], np.int32))) == ()


def test_all_faults_are_counted_and_ten_are_told_in_order() -> None:
    split = first_pixels(*[200] * 30)
    count = np.arange(30)
    made = evidence(
        images=count.tolist(), clean="1" * 30, broken_at=[-1] * 30, data_sha256=data_sha256(split, count)
    )
    made = replace(made, labels=np.zeros(30, np.int64)).in_format_1()
    *_, report = verify_evidence(made, loaded(FirstPixel()), split, device="cpu", batch_size=8)
    assert report.faults == 30
    assert [sentence.split(" is ")[0] for sentence in report.sentences] == [f"image {i}" for i in range(10)]


def test_evidence_about_something_else_is_refused() -> None:
    model = loaded(FirstPixel(), classes=2)

    def check(made: Evidence, split: Arrays = TEST_SPLIT) -> None:
        list(verify_evidence(made, model, split, device="cpu", batch_size=8))

    with pytest.raises(EvidenceError, match=r"is about the checkpoint 1{64}, found 0{64}"):
        check(honest(about=honest().about.model_copy(update={"checkpoint_sha256": "1" * 64})))
    other = Arrays(TEST_SPLIT.images.copy(), TEST_SPLIT.labels, 2)
    other.images[5, 1, 1, 0] += 1
    relabelled = Arrays(TEST_SPLIT.images, np.array([1, 0, 0, 0, 0, 0, 0, 0]), 2)
    unused = Arrays(TEST_SPLIT.images.copy(), TEST_SPLIT.labels, 2)
    unused.images[4, 1, 1, 0] += 1
    short = Arrays(TEST_SPLIT.images[:6], TEST_SPLIT.labels[:6], 2)
    for split in (other, relabelled, short):
        with pytest.raises(EvidenceError, match=r"is about 6 images of npz:tiny that differ from those found"):
            check(honest(), split)
    check(honest(), unused)
    with pytest.raises(EvidenceError, match=r"have the shape \(1, 3, 2\), those of npz:tiny \(1, 2, 3\)"):
        check(honest(x8=honest().x8.reshape(2, 1, 3, 2), x32=honest().x32.reshape(1, 1, 3, 2)))
