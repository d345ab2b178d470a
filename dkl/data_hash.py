"""The sha256 (hex) of training images and their labels, so that a result says what was learnt from. No torch here.

Of images that lie in memory it is `dkl.evidence.data_sha256`. Of those that are too many to be read, pictures in
folders and generated ones, all names and labels count, and the content of SAMPLED images evenly spread.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from dkl.datasets import Arrays, Folder
from dkl.evidence import data_sha256

SAMPLED = 1000


def of_arrays(arrays: Arrays) -> str:
    return data_sha256(arrays, np.arange(len(arrays.labels)))


def of_mixture(real: Arrays, generated: Arrays) -> str:
    """`generated` may be memory-mapped."""
    digest = hashlib.sha256(of_arrays(real).encode())
    digest.update(generated.labels.astype("<i8").tobytes())
    digest.update(data_sha256(generated, _sample(len(generated.labels))).encode())
    return digest.hexdigest()


def of_folder(folder: Folder) -> str:
    digest = hashlib.sha256("\n".join(folder.files.tolist()).encode())
    digest.update(folder.labels.astype("<i8").tobytes())
    for row in _sample(len(folder.labels)):
        with (folder.root / str(folder.files[row])).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _sample(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, SAMPLED).astype(np.int64))
