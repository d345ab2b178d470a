"""What an error in a job means: the job's own fault, the machine's trouble that passes, or a broken GPU."""

import errno

from service.artifacts import StoreError
from service.space import FullError

_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}
_IN_WORDS = ("No space left on device", "PytorchStreamWriter failed")
"""As safetensors and torch.save say that the disk is full."""
_OF_THE_GPU = ("CUDA error", "cuDNN error", "NCCL error")


def passes(error: Exception) -> bool:
    """Whether it is the machine's trouble and passes by itself: a full disk, a store that is away."""
    if isinstance(error, FullError | StoreError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING:
        return True
    return any(words in str(error) for words in _IN_WORDS)


def is_of_the_gpu(error: Exception) -> bool:
    """Whether the GPU or its driver failed; the process can use it no more."""
    import torch

    is_said = isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_THE_GPU)
    return isinstance(error, torch.AcceleratorError) or is_said


def explains_itself(error: Exception) -> bool:
    """Whether the library raised it with a sentence for the user."""
    return isinstance(error, ValueError | ArithmeticError | MemoryError)
