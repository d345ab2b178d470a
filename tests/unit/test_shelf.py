"""Finished batches: they come back as they were, and only to the question that they answer."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from dkl.events import Adjusted, BatchDone
from dkl.shelf import Shelf, read_judged, write_judged
from dkl.tally import Finding
from dkl.units import Judged, Unit

ROWS = np.array([1, 4, 5])
UNIT = Unit(2, 1, 3, ROWS, None)


def shelf(workdir: Path, *, recipe: str = "r" * 64, checkpoint: str = "c" * 64) -> Shelf:
    return Shelf(workdir, recipe=recipe, checkpoint=checkpoint)


def batch(stage: int = 2, number: int = 1) -> Judged:
    event = BatchDone(
        stage=stage,
        name="apgd-ce",
        phase="suite",
        eps=8 / 255,
        batch=number,
        batches=3,
        images=(1, 4, 5),
        standing="010",
        forwards=12,
        backwards=10,
        seconds=math.pi,
        rejected=0,
        warnings=("Grüße", 'a "quoted" \n line'),
    )
    found = Finding(
        rows=ROWS,
        broken=np.array([True, False, True]),
        restart=np.array([0, -1, 3], np.int16),
        target=np.array([-1, -1, 9], np.int16),
        step=np.array([7, -1, 70_000], np.int32),
        margin=np.array([-0.1, np.inf, np.float32(1e-30)], np.float32),
        flat=np.array([False, True, False]),
        x8=np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3),
        x32=np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3) / 7,
        in_8_bits=np.array([True, False, False]),
        predicted=np.array([4, -1, 9], np.int32),
    )
    adjusted = Adjusted(sentence="512 images were too many", micro_batch=256)
    return Judged(event, found, "bfloat16", "a device", (adjusted,))


def test_a_batch_comes_back_as_it_was(tmp_path: Path) -> None:
    judged = batch()
    shelf(tmp_path).write(judged)
    kept = shelf(tmp_path).read(UNIT)
    assert kept is not None
    assert kept._replace(found=judged.found) == judged
    for name, value in judged.found._asdict().items():
        np.testing.assert_array_equal(getattr(kept.found, name), value, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["stage-002-batch-0001.safetensors"]


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    shelf(tmp_path).write(batch())
    assert shelf(tmp_path).read(UNIT._replace(batch=0)) is None
    assert shelf(tmp_path).read(UNIT._replace(stage=1)) is None


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"recipe": "s" * 64}, ROWS),
        ({"checkpoint": "d" * 64}, ROWS),
        ({}, np.array([1, 4])),
        ({}, np.array([1, 4, 6])),
    ],
)
def test_another_question_is_refused(changes: dict[str, str], rows: np.ndarray, tmp_path: Path) -> None:
    shelf(tmp_path).write(batch())
    with pytest.raises(ValueError, match=r"holds verdicts of another recipe or checkpoint; use another work dir"):
        shelf(tmp_path, **changes).read(UNIT._replace(rows=rows))


@pytest.mark.parametrize("change", [{"stage": 1}, {"batch": 0}])
def test_the_verdicts_of_another_unit_on_the_same_images_are_refused(
    change: dict[str, int], tmp_path: Path
) -> None:
    """A stage in which nothing fell leaves the next one the same images."""
    write_judged(tmp_path / "found", batch(), recipe="r", checkpoint="c")
    with pytest.raises(ValueError, match="holds verdicts of another recipe or checkpoint"):
        read_judged(tmp_path / "found", UNIT._replace(**change), recipe="r", checkpoint="c")


def parts(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with safetensors.safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["dkl"]), {name: file.get_tensor(name) for name in Finding._fields}


def write_parts(path: Path, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    path.write_bytes(safetensors.numpy.save(arrays, metadata={"dkl": json.dumps(about)}))


def test_a_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    shelf(tmp_path).write(batch())
    [path] = tmp_path.iterdir()
    about, arrays = parts(path)
    for name in ("precision", "device", "adjusted", "predicted_sha256"):
        del about[name]
    del arrays["predicted"]
    write_parts(path, about, arrays)
    kept = shelf(tmp_path).read(UNIT)
    assert kept is not None
    assert (kept.precision, kept.device, kept.adjusted, kept.found.predicted) == (None, None, (), None)
    assert kept.found.broken.tolist() == [True, False, True]


def test_the_version_before_predictions_reads_the_file(tmp_path: Path) -> None:
    """While machines are upgraded one by one, none takes the others' verdicts for damaged."""
    shelf(tmp_path).write(batch())
    about, arrays = parts(next(tmp_path.iterdir()))
    digest = hashlib.sha256()
    for name in ("rows", "broken", "restart", "target", "step", "margin", "flat", "x8", "x32", "in_8_bits"):
        digest.update(arrays[name].tobytes())
    assert about["found_sha256"] == digest.hexdigest()


@pytest.mark.parametrize("predicted", [None, np.array([4, -1, 8], np.int32)])
def test_other_predictions_than_were_written_are_damage(predicted: np.ndarray | None, tmp_path: Path) -> None:
    shelf(tmp_path).write(batch())
    [path] = tmp_path.iterdir()
    about, arrays = parts(path)
    arrays = {name: array for name, array in (arrays | {"predicted": predicted}).items() if array is not None}
    write_parts(path, about, arrays)
    with pytest.raises(ValueError, match="is damaged"):
        shelf(tmp_path).read(UNIT)


def damage(content: bytes) -> list[bytes]:
    return [b"", content[:4], content[:-10], b"\0" * len(content), content[:30] + b"\xff" + content[31:]]


@pytest.mark.parametrize("kind", range(5))
def test_a_damaged_file_is_a_sentence(kind: int, tmp_path: Path) -> None:
    shelf(tmp_path).write(batch())
    [path] = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes())[kind])
    with pytest.raises(ValueError, match=r"stage-002-batch-0001.safetensors is damaged; delete it to judge"):
        shelf(tmp_path).read(UNIT)


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    shelf(tmp_path).write(batch())
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    for place in range(len(whole) - 90, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="is damaged"):
            shelf(tmp_path).read(UNIT)


@pytest.mark.parametrize("content", [{"dkl": "{}"}, {}, {"dkl": '{"recipe": "r"}'}])
def test_foreign_files_are_damaged(content: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "stage-002-batch-0001.safetensors"
    path.write_bytes(safetensors.numpy.save({"rows": ROWS}, metadata=content))
    with pytest.raises(ValueError, match="is damaged"):
        shelf(tmp_path).read(UNIT)
