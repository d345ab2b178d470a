"""A bit per image: packed and back, and what is no such thing."""

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dkl.flags import Flags, pack, unpack


@given(st.lists(st.booleans(), max_size=40))
def test_flags_come_back_as_they_were(flags: list[bool]) -> None:
    unpacked = unpack(pack(flags), len(flags))
    assert unpacked.dtype == np.bool_
    assert unpacked.tolist() == flags


def test_the_first_image_is_the_highest_bit() -> None:
    assert base64.b64decode(pack([True, False, False, False, False, False, False, False, True])) == b"\x80\x80"
    assert pack(np.ones(3, np.bool_)) == "4A=="


@pytest.mark.parametrize("count", [0, 7, 8, 17, 24])
def test_another_number_of_flags_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} flags take"):
        unpack(pack([True] * 9), count)


@pytest.mark.parametrize("text", ["", "4A=", "4A", "4-==", "4A==\n", "é", "4A==4A=="])
def test_what_is_no_base64_of_these_flags_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="flags"):
        unpack(text, 3)


def test_a_document_names_its_data() -> None:
    flags = Flags(data_sha256="d" * 64, clean="", robust="")
    assert Flags.model_validate_json(flags.model_dump_json()) == flags
    for changes in ({"data_sha256": "d"}, {"more": 1}):
        with pytest.raises(ValidationError):
            Flags.model_validate(flags.model_dump() | changes)
