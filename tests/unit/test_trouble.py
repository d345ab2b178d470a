"""What an error in a job means: its own fault, trouble that passes by itself, or a broken GPU."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from service.artifacts import StoreError
from service.space import FullError
from workers.trouble import explains_itself, is_of_the_gpu, passes

PASSING = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    FullError("12 bytes are free"),
    StoreError("the bucket does not answer"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/3"),
]
OF_THE_GPU = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
]
OWN_FAULT = [
    ValueError("the model gives probabilities"),
    FloatingPointError("loss is nan at epoch 12, batch 40"),
    MemoryError("not even one image at a time fits into memory"),
]
A_MISTAKE = [
    RuntimeError("shape '[3]' is invalid for input of size 4"),
    KeyError("x"),
    FileNotFoundError(2, "gone"),
]


def meaning(error: Exception) -> tuple[bool, bool, bool]:
    return passes(error), is_of_the_gpu(error), explains_itself(error)


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_what_passes_by_itself(error: Exception) -> None:
    assert meaning(error)[:2] == (True, False)


@pytest.mark.parametrize("error", OF_THE_GPU, ids=str)
def test_a_broken_gpu(error: Exception) -> None:
    assert meaning(error) == (False, True, False)


@pytest.mark.parametrize("error", OWN_FAULT, ids=str)
def test_the_jobs_own_fault(error: Exception) -> None:
    assert meaning(error) == (False, False, True)


@pytest.mark.parametrize("error", A_MISTAKE, ids=str)
def test_anything_else_is_a_mistake_of_ours(error: Exception) -> None:
    assert meaning(error) == (False, False, False)
