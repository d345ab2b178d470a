"""Generated images: found inside the file without reading it, mixed by fraction, drawn again and again."""

import gc
import math
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dkl.ahead import Ahead
from dkl.architectures import CNN
from dkl.batches import TrainingData, training_data
from dkl.datasets import Arrays, DatasetError
from dkl.generated import GeneratedRows, open_generated
from dkl.objectives import Natural
from dkl.recipes import Augmentation, Generated, Train, Validation

REAL = Arrays(np.zeros((3, 4, 5, 3), np.uint8), np.arange(3), classes=3)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0])


# --- the file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, ">i4"])
@pytest.mark.parametrize("packed", [True, False])
def test_images_are_mapped_where_they_lie(tmp_path: Path, packed: bool, dtype: Any, order: Any) -> None:
    arrays = {"image": np.asarray(IMAGES, order=order), "label": LABELS.astype(dtype)}
    if packed:
        np.savez(tmp_path / "edm.npz", more=np.arange(5), **arrays)
    else:
        (tmp_path / "edm").mkdir()
        for name, array in arrays.items():
            np.save(tmp_path / "edm" / f"{name}.npy", array)
    found = open_generated(tmp_path, "edm", real=REAL)
    assert isinstance(found.images, np.memmap)
    assert not found.images.flags.writeable
    np.testing.assert_array_equal(found.images, IMAGES)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert (found.labels.dtype, found.classes) == (np.int64, 3)


SIDE = 1000


def big(path: Path, count: int) -> int:
    """An .npz of `count` black images of 3 MB that takes no disk, but for the last one's last pixel; its size.

    Written by the format's description, with 64-bit sizes and offsets throughout as numpy writes them.
    """
    directory = b""
    with path.open("wb") as file:
        for name, shape, last in (
            (b"image.npy", (count, SIDE, SIDE, 3), b"\xff\xff\xff"),
            (b"label.npy", (count,), b"\x02"),
        ):
            about = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
            about += b" " * (-(len(about) + 11) % 64) + b"\n"
            npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(about)) + about
            size, start = len(npy) + math.prod(shape), file.tell()
            common = struct.pack("<HHHHIII", 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF)
            file.write(b"PK\x03\x04" + struct.pack("<H", 45) + common + struct.pack("<HH", len(name), 20))
            file.write(name + struct.pack("<HHQQ", 1, 16, size, size) + npy)
            file.seek(size - len(npy) - len(last), 1)
            file.write(last)
            directory += b"PK\x01\x02" + struct.pack("<HH", 45, 45) + common
            directory += struct.pack("<HHHHHII", len(name), 28, 0, 0, 0, 0, 0xFFFFFFFF)
            directory += name + struct.pack("<HHQQQ", 1, 24, size, size, start)
        at = file.tell()
        file.write(
            directory + b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 2, 2, len(directory), at)
        )
        file.write(b"PK\x06\x07" + struct.pack("<IQI", 0, at + len(directory), 1))
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 2, 2, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    return path.stat().st_size


def test_five_gigabytes_are_opened_and_drawn_from_without_being_read(tmp_path: Path) -> None:
    assert big(tmp_path / "edm.npz", 1700) > 5e9
    real = Arrays(np.broadcast_to(np.uint8(0), (3, SIDE, SIDE, 3)), np.arange(3), classes=3)
    with np.load(tmp_path / "edm.npz") as official:  # numpy itself takes it for an .npz
        assert sorted(official) == ["image", "label"]
    tracemalloc.start()
    try:
        found = open_generated(tmp_path, "edm", real=real)
        drawn = GeneratedRows(found, count=2, batches=10, seed=0, device="cpu").rows(1, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.images.shape == (1700, SIDE, SIDE, 3)
    assert (found.labels[0], found.labels[-1]) == (0, 2)  # the second member begins beyond 4 GiB
    assert found.images[-1, -1, -1].tolist() == [255, 255, 255]
    assert not found.images[-1, -1, -2].any()
    assert drawn[0].shape == (2, 3, SIDE, SIDE)
    assert peak < 4 * 2 * 3 * SIDE * SIDE  # two batches of two images at most, while they are copied


@pytest.mark.parametrize(
    ("image", "label", "sentence"),
    [
        (
            IMAGES.astype(np.float32),
            LABELS,
            r"must be uint8 of shape \(N, 4, 5, 3\) like .*, found float32 \(7, 4",
        ),
        (IMAGES[..., :1], LABELS, r"must be uint8 of shape \(N, 4, 5, 3\) .*, found uint8 \(7, 4, 5, 1\)"),
        (IMAGES[:, 0], LABELS, r"must be uint8 of shape .*, found uint8 \(7, 5, 3\)"),
        (IMAGES, LABELS[:2], r"must be 7 integers, found int64 \(2,\)"),
        (IMAGES, LABELS.astype(float), "must be 7 integers, found float64"),
        (IMAGES, np.array(LABELS, dtype=object), r"does not hold arrays in \.npy form: it holds Python objects"),
        (IMAGES, LABELS + 1, r"labels in .*edm\.npz must be 0\.\.2, found 1\.\.3"),
        (IMAGES, LABELS - 1, r"labels in .*edm\.npz must be 0\.\.2, found -1\.\.1"),
        (IMAGES[:0], LABELS[:0], "holds no images"),
    ],
)
def test_data_of_the_wrong_form(tmp_path: Path, image: np.ndarray, label: np.ndarray, sentence: str) -> None:
    np.savez(tmp_path / "edm.npz", image=image, label=label)
    with pytest.raises(DatasetError, match=sentence):
        open_generated(tmp_path, "edm", real=REAL)


def test_a_compressed_file_names_the_command_that_mends_it(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "edm.npz", image=IMAGES, label=LABELS)
    with pytest.raises(DatasetError) as caught:
        open_generated(tmp_path, "edm", real=REAL)
    command = f"python -m zipfile -e {tmp_path / 'edm.npz'} {tmp_path / 'edm'}/"
    assert str(caught.value).endswith(command)
    subprocess.run([sys.executable, *command.split()[1:]], check=True)
    np.testing.assert_array_equal(open_generated(tmp_path, "edm", real=REAL).images, IMAGES)


def test_missing_files_and_arrays(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"neither .*edm\.npz nor .*edm/ exists; put the generated images there"
    ):
        open_generated(tmp_path, "edm", real=REAL)
    np.savez(tmp_path / "edm.npz", images=IMAGES, label=LABELS)
    with pytest.raises(DatasetError, match=r"found images\.npy, label\.npy; image\.npy is missing"):
        open_generated(tmp_path, "edm", real=REAL)
    (tmp_path / "edm").mkdir()
    with pytest.raises(DatasetError, match=r"cannot read .*image\.npy \(No such file.*\); the folder needs"):
        open_generated(tmp_path, "edm", real=REAL)


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "edm.npz"
    np.savez(path, image=IMAGES, label=LABELS)
    whole = path.read_bytes()
    for cut in (0, 10, 200, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DatasetError, match=r"edm\.npz is no \.npz or is truncated"):
            open_generated(tmp_path, "edm", real=REAL)
    path.write_bytes(b"XX" + whole[2:])
    with pytest.raises(DatasetError, match=r"is damaged where image\.npy should begin"):
        open_generated(tmp_path, "edm", real=REAL)
    path.write_bytes(whole.replace(b"\x93NUMPY", b"\x93NUMPI"))
    with pytest.raises(DatasetError, match=r"does not hold arrays in \.npy form: the magic string is not correct"):
        open_generated(tmp_path, "edm", real=REAL)
    folder = tmp_path / "edm"
    folder.mkdir()
    np.save(folder / "label.npy", LABELS)
    np.save(folder / "image.npy", IMAGES)
    npy = (folder / "image.npy").read_bytes()
    (folder / "image.npy").write_bytes(npy[:-1])
    with pytest.raises(DatasetError, match=f"must be {len(npy)} bytes long by its header, found {len(npy) - 1}"):
        open_generated(tmp_path, "edm", real=REAL)
    (folder / "image.npy").write_bytes(npy[:20])
    with pytest.raises(DatasetError, match=r"does not hold arrays in \.npy form"):
        open_generated(tmp_path, "edm", real=REAL)


# --- batches ----------------------------------------------------------------------------------------------


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """npz:tiny: 20 real images, grey level i in image i; edm: 6 generated, 100 + i. Labels tell them apart."""
    for name, count, first in (("tiny_train", 20, 0), ("edm", 6, 100)):
        level = first + np.arange(count)
        image = np.broadcast_to(level[:, None, None, None], (count, 8, 8, 1)).astype(np.uint8)
        np.savez(
            tmp_path / f"{name}.npz", image=image, label=np.arange(count) if first == 0 else 14 + np.arange(6)
        )
    return tmp_path


def made(data_dir: Path, *, fraction: float = 0.7, **changes: Any) -> TrainingData:
    fields = {
        "dataset": "npz:tiny",
        "model": CNN(width=4),
        "objective": Natural(),
        "augmentation": None,
        "epochs": 1,
        "batch_size": 8,
        "generated": Generated(file="edm", fraction=fraction),
    }
    return training_data(Train.model_validate({**fields, **changes}), data_dir, "cpu")


def levels(data: TrainingData, epoch: int) -> list[list[int]]:
    """Each batch's grey levels; its labels must belong to them."""
    batches = []
    for index in range(len(data.batches)):
        x, y = data.batches.batch(epoch, index)
        assert (x.dtype, y.dtype, x.shape[1:]) == (torch.float32, torch.int64, (1, 8, 8))
        level = (x[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(x, (level[:, None, None, None].float() / 255).expand_as(x))
        assert torch.equal(y, torch.where(level < 100, level, level - 100 + 14))
        positions = data.batches.positions(epoch, index)
        assert torch.equal(positions < 0, level >= 100)
        assert data.labels[positions[positions >= 0].numpy()].tolist() == y[level < 100].tolist()
        batches.append(level.tolist())
    return batches


@pytest.mark.parametrize(
    ("fraction", "batch_size", "generated"), [(0.7, 8, 5), (0.8, 5, 4), (0.5, 7, 3), (0.3, 50, 15)]
)
def test_each_batch_has_its_share(data_dir: Path, fraction: float, batch_size: int, generated: int) -> None:
    data = made(data_dir, fraction=fraction, batch_size=batch_size)
    for batch in levels(data, 1):
        assert len(batch) == batch_size
        assert sum(level >= 100 for level in batch) == generated


def test_an_epoch_is_as_long_as_without_them_held_out_images_included(data_dir: Path) -> None:
    assert len(made(data_dir).batches) == 3
    assert len(made(data_dir, validation=Validation(images=12)).batches) == 3
    assert len(made(data_dir, images=16).batches) == 2


def test_real_images_walk_through_one_permutation_after_the_other(data_dir: Path) -> None:
    data = made(data_dir, fraction=0.2, validation=Validation(images=12))
    for epoch in (1, 2):
        walked = [[level for level in batch if level < 100] for batch in levels(data, epoch)]
        assert [len(batch) for batch in walked] == [7, 7, 7]
        seen = Counter(level for batch in walked for level in batch)  # 21 steps through 8 images
        assert set(seen) == set(range(12, 20))
        assert set(seen.values()) == {2, 3}
    fours = made(data_dir, fraction=0.2, batch_size=5, validation=Validation(images=12))
    a, b, c, d = ({level for level in batch if level < 100} for batch in levels(fours, 1))
    assert a | b == c | d == set(range(12, 20))
    assert c not in (a, b)


def test_real_and_generated_images_are_shuffled_together(data_dir: Path) -> None:
    data = made(data_dir, batch_size=20, fraction=0.5)
    places = [
        place
        for epoch in range(1, 101)
        for batch in levels(data, epoch)
        for place, level in enumerate(batch)
        if level < 100
    ]
    counts = np.bincount(places, minlength=20)
    assert counts.sum() == 1000
    assert counts.min() > 25  # 50 expected, standard deviation 5
    assert counts.max() < 75


def test_generated_images_are_drawn_uniformly_with_replacement(data_dir: Path) -> None:
    data = made(data_dir, batch_size=20, fraction=0.5)
    batches = [[level for level in batch if level >= 100] for e in range(1, 301) for batch in levels(data, e)]
    assert all(len(set(batch)) < len(batch) for batch in batches)  # ten of six
    counts = np.bincount([level - 100 for batch in batches for level in batch])
    chi2 = ((counts - 500) ** 2 / 500).sum()
    assert chi2 < 20.5  # 99.9 % of uniform draws, 5 degrees of freedom
    # Each batch's count of one image is binomial: variance 10 * 1/6 * 5/6 = 1.39, far less without replacement.
    assert np.var([batch.count(103) for batch in batches]) == pytest.approx(1.39, abs=0.4)


def test_any_batch_can_be_made_alone(data_dir: Path) -> None:
    changes = {"augmentation": Augmentation(), "seed": 2**40}
    walked = made(data_dir, **changes).batches
    in_order = {(e, i): walked.batch(e, i) for e in (1, 2) for i in range(3)}
    for key in [(2, 1), (2, 1), (1, 2), (2, 0), (1, 0)]:
        for b in (made(data_dir, **changes).batches, walked):
            x, y = b.batch(*key)
            assert torch.equal(x, in_order[key][0])
            assert torch.equal(y, in_order[key][1])
    assert not torch.equal(made(data_dir, seed=1).batches.batch(1, 0)[1], made(data_dir).batches.batch(1, 0)[1])


def test_a_fraction_of_no_image_is_refused(data_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"generated\.fraction 0\.1 of batch_size 8 is less than one image"):
        made(data_dir, fraction=0.1)


# --- reading ahead ----------------------------------------------------------------------------------------


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_the_next_batch_is_read_before_it_is_asked_for() -> None:
    began = {(1, 0): threading.Event(), (1, 1): threading.Event(), (2, 0): threading.Event()}
    counts: Counter[tuple[int, int]] = Counter()

    def read(epoch: int, index: int) -> tuple[int, int, threading.Thread]:
        counts[epoch, index] += 1
        began[epoch, index].set()
        return epoch, index, threading.current_thread()

    ahead = Ahead(read, batches=2)
    assert ahead.get(1, 0)[:2] == (1, 0)
    assert began[1, 1].wait(timeout=10)
    *key, thread = ahead.get(1, 1)
    assert key == [1, 1]
    assert thread is not threading.current_thread()
    assert began[2, 0].wait(timeout=10)  # the epoch's last batch is followed by the next one's first
    assert set(counts.values()) == {1}


def test_any_batch_may_be_asked_for() -> None:
    ahead = Ahead(lambda epoch, index: (epoch, index), batches=3)
    for key in [(1, 0), (1, 1), (5, 2), (6, 0), (6, 0), (1, 1)]:
        assert ahead.get(*key) == key


def test_an_error_belongs_to_its_batch_and_the_thread_ends_with_the_reader() -> None:
    def read(epoch: int, index: int) -> int:
        if index == 1:
            raise DatasetError("bad")
        return index

    gc.collect()
    before = readers()
    ahead = Ahead(read, batches=3)
    assert ahead.get(1, 0) == 0
    with pytest.raises(DatasetError, match="bad"):
        ahead.get(1, 1)
    assert ahead.get(1, 2) == 2
    (thread,) = set(readers()) - set(before)
    del ahead
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_process_ends_while_a_batch_is_being_read() -> None:
    script = (
        "import time; from dkl.ahead import Ahead; "
        "ahead = Ahead(lambda epoch, index: time.sleep(0.1), batches=5); ahead.get(1, 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
