"""Evidence for pages: tables and single images by ranges, and damaged files that are refused in a sentence."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import exhibits
import numpy as np
import pytest
from exhibits import Shown
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dkl.catalog import resolve
from dkl.evidence import EvidenceError
from dkl.protocols import Evaluate
from service.exhibits import Exhibits, _Memory, open_exhibits
from service.store_folder import FolderStore


def recipe(**changes: Any) -> Evaluate:
    resolved = resolve("autoattack-digits-linf", {"model.job": "0123456789ab", **changes})
    assert isinstance(resolved, Evaluate)
    return resolved


class CountingStore(FolderStore):
    """A folder that knows how many bytes were read from it."""

    nbytes = 0

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        for block in super().read(sha256, start, stop):
            self.nbytes += len(block)
            yield block


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path / "artifacts")


def opened(store: FolderStore, folder: Path, shown: Shown, **changes: Any) -> Exhibits:
    found = open_exhibits(store, exhibits.store(store, recipe(**changes), shown, folder))
    assert found is not None
    return found


def test_tables_and_images_come_back(store: CountingStore, tmp_path: Path) -> None:
    shown = Shown()
    found, written = opened(store, tmp_path, shown), exhibits.tables(recipe(), shown)
    for name in ("images", "labels", "clean_correct", "radii", "broken_at", "stage", "predicted", "predicted_adv"):
        np.testing.assert_array_equal(getattr(found, name), written[name], strict=True)
    assert found.about.stages[1].name == "apgd-ce"
    assert (found.clean_correct.sum(), found.standing(0).sum()) == (shown.clean, shown.robust)
    originals = exhibits.pictures(shown)
    for row in range(shown.images):
        clean, adversarial = found.clean(row), found.adversarial(row)
        assert found.has_clean(row) == (clean is not None) == (row < shown.pictures)
        assert found.has_adversarial(row) == (adversarial is not None) == (found.broken_at[row] >= 0)
        if clean is not None:
            np.testing.assert_array_equal(clean, originals[row], strict=True)
    assert found.clean(-1) is found.clean(shown.images) is found.adversarial(10**9) is None


def test_both_kinds_of_adversarial_images_are_found(store: CountingStore, tmp_path: Path) -> None:
    found = opened(store, tmp_path, Shown())
    expected = exhibits.attacked(exhibits.pictures(Shown()), recipe().threat.eps)
    kinds = {row: found.adversarial(row) for row in [*found.rows8[-2:], *found.rows32[-2:]]}
    assert [image.dtype for image in kinds.values() if image is not None] == [np.uint8] * 2 + [np.float32] * 2
    for row, image in kinds.items():
        assert image is not None
        levels = image if image.dtype == np.uint8 else np.rint(255 * image)
        np.testing.assert_array_equal(levels, expected[row])


def test_format_1_has_no_predictions_and_no_clean_images(store: CountingStore, tmp_path: Path) -> None:
    found = opened(store, tmp_path, Shown(form=1))
    assert found.predicted is found.predicted_adv is None
    assert (len(found.rows_clean), found.clean(0)) == (0, None)
    assert found.adversarial(0) is not None


def test_only_the_tables_are_read_and_only_once(store: CountingStore, tmp_path: Path) -> None:
    shown = Shown(images=400, clean=390, robust=100, classes=10, shape=(3, 32, 32), pictures=50)
    sha256 = exhibits.store(store, recipe(), shown, tmp_path)
    size = (tmp_path / "evidence.safetensors").stat().st_size
    found = open_exhibits(store, sha256)
    assert found is not None
    assert store.nbytes < size / 50
    before = store.nbytes
    assert open_exhibits(store, sha256) is not None
    assert store.nbytes == before
    found.clean(49)
    assert store.nbytes == before + 3 * 32 * 32


def test_only_so_much_is_remembered(store: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.exhibits._memory", _Memory(most_bytes=3500))
    files = [exhibits.store(store, recipe(), Shown(images=n, clean=n, robust=9), tmp_path) for n in (40, 41, 42)]
    for sha256 in files:
        open_exhibits(store, sha256)
    before = store.nbytes
    open_exhibits(store, files[-1])
    assert store.nbytes == before
    open_exhibits(store, files[0])  # was forgotten
    assert store.nbytes > before


def test_what_is_not_stored_or_no_longer_is_none(store: CountingStore, tmp_path: Path) -> None:
    sha256 = exhibits.store(store, recipe(), Shown(images=20, clean=15, robust=5), tmp_path)
    assert open_exhibits(store, "0" * 64) is None
    assert open_exhibits(store, sha256) is not None
    store.delete(sha256)
    assert open_exhibits(store, sha256) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": np.zeros(39, np.int64)}, r"labels must be I64 \(40,\), found I64 \(39,\)"),
        ({"labels": np.full(40, -1)}, "negative labels"),
        ({"stage": np.full(40, 5, np.int16)}, "stage of the evidence must be -1..4"),
        ({"stage": np.full(40, -1, np.int16)}, "without the stage"),
        ({"broken_at": np.full(40, 3, np.int8)}, "broken_at of the evidence must be -1..0"),
        ({"clean_correct": np.full(40, 2, np.uint8).view(np.bool_)}, "neither 0 nor 1"),
        ({"radii": np.array([0.5])}, "radii"),
        ({"radii": np.array(0.5)}, "radii must be F64"),
        ({"images": np.array(3)}, "images must be I64"),
        (
            {"rows_clean": np.arange(24, dtype=np.int32)[::-1].copy()},
            "rows_clean of the evidence must be ascending",
        ),
        (
            {"rows_clean": np.arange(24, dtype=np.int32) + 17},
            "rows_clean of the evidence must be ascending and below",
        ),
        ({"x_clean": np.zeros((24, 1, 8, 9), np.uint8)}, r"x_clean must be U8 \(24, 1, 8, 8\)"),
    ],
)
def test_evidence_that_would_mislead_is_refused(
    store: CountingStore, tmp_path: Path, changes: dict[str, np.ndarray], sentence: str
) -> None:
    with pytest.raises(EvidenceError, match=sentence):
        opened(store, tmp_path, Shown(changes=changes))


def test_a_file_without_a_table_is_refused(store: CountingStore, tmp_path: Path) -> None:
    sha256 = store.put(_as_format_2(tmp_path, exhibits.content(recipe(), Shown(form=1))))
    with pytest.raises(EvidenceError, match="lacks predicted, predicted_adv, rows_clean, x_clean"):
        open_exhibits(store, sha256)


def _as_format_2(folder: Path, content: bytes) -> Path:
    path = folder / "claimed.safetensors"
    path.write_bytes(content.replace(b'\\"format\\": 1', b'\\"format\\": 2'))
    return path


def test_images_that_no_page_can_show_are_refused(store: CountingStore, tmp_path: Path) -> None:
    five_channels = Shown(images=12, clean=11, robust=5, shape=(5, 4, 4), pictures=3)
    with pytest.raises(EvidenceError, match="cannot show 12 images"):
        opened(store, tmp_path, five_channels)


@given(position=st.integers(0), value=st.integers(0, 255), cut=st.booleans())
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
def test_a_changed_byte_is_refused_or_harmless(
    store: CountingStore, tmp_path: Path, position: int, value: int, cut: bool
) -> None:
    content = bytearray(exhibits.content(recipe(), Shown(images=6, clean=5, robust=3, pictures=2)))
    position %= len(content)
    content[position] = value
    (tmp_path / "changed").write_bytes(content[:position] if cut else content)
    try:
        found = open_exhibits(store, store.put(tmp_path / "changed"))
        assert found is not None
        images = [found.clean(row) for row in range(6)] + [found.adversarial(row) for row in range(6)]
    except EvidenceError as error:
        sentence, images = str(error), []
    else:
        sentence = ""
        assert [found.about.stages[stage].name for stage in found.stage]
    assert "\n" not in sentence
    assert {image.shape for image in images if image is not None} <= {(1, 8, 8)}


@pytest.mark.parametrize(
    "header",
    [
        {"images": {"dtype": "I64", "shape": [2**40], "data_offsets": [0, 2**43]}},
        {"images": {"dtype": "I64", "shape": [-1], "data_offsets": [0, 8]}},
        {"images": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}},
        {"images": {"dtype": "I64", "shape": [True], "data_offsets": [0, 8]}},
        {"images": 3},
        [],
    ],
)
def test_a_header_that_promises_too_much_is_refused(store: CountingStore, tmp_path: Path, header: Any) -> None:
    whole = exhibits.content(recipe(), Shown())
    length = int.from_bytes(whole[:8], "little")
    true = json.loads(whole[8 : 8 + length])
    written = json.dumps({**true, **header} if isinstance(header, dict) else header).encode()
    (tmp_path / "liar").write_bytes(len(written).to_bytes(8, "little") + written + whole[8 + length :])
    with pytest.raises(EvidenceError, match="header of the evidence"):
        open_exhibits(store, store.put(tmp_path / "liar"))


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\xff" * 100, (2**40).to_bytes(8, "little") + b"{}"])
def test_other_files_are_refused(store: CountingStore, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(EvidenceError, match="is not a safetensors file"):
        open_exhibits(store, store.put(tmp_path / "other"))


def test_several_radii_fall_one_after_the_other(store: CountingStore, tmp_path: Path) -> None:
    found = opened(store, tmp_path, replace(Shown(), robust=10), curve=[0.02, 0.05])
    standing = [int(found.standing(radius).sum()) for radius in range(3)]
    assert standing == sorted(standing, reverse=True)
    assert standing[-1] == 10
