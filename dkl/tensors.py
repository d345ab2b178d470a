"""Tensors in safetensors files: as a header describes them, without memory, and written one by one, uncopied.

The package safetensors writes the same bytes, and holds all of them in memory three times over meanwhile.
"""

import hashlib
import json
from typing import BinaryIO

import torch
from torch import Tensor

from dkl.headers import Header

State = dict[str, Tensor]
_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
"""In the order, from the last one to the first, in which they lie in a file; then by name."""
_NAMES = {kind: name for name, kind in _TYPES.items()}
_ORDER = list(_NAMES)


def outlines(header: Header) -> State:
    """The tensors that the header describes, on the meta device."""
    return {
        name: torch.empty(entry.shape, dtype=_TYPES[entry.dtype], device="meta")
        for name, entry in header.entries.items()
    }


def write_tensors(file: BinaryIO, state: State, about: str) -> str:
    """Write `state` with the metadata {"dkl": about} as a safetensors file; its sha256 (hex).

    Equal weights give equal bytes, in every process: that is why there is one piece of metadata only, and why the
    order is fixed.
    """
    names = sorted(state, key=lambda name: (-_ORDER.index(state[name].dtype), name))
    table: dict[str, object] = {"__metadata__": {"dkl": about}}
    end = 0
    for name in names:
        value, begin = state[name], end
        end += value.numel() * value.element_size()
        table[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()

    def write(piece: bytes | memoryview) -> None:
        file.write(piece)
        digest.update(piece)

    write(len(header).to_bytes(8, "little") + header)
    for name in names:
        write(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
