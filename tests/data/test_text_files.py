import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_llm.data.text_files import SEPARATORS, file_documents, separator_pattern, split_stream

pytestmark = pytest.mark.backend_free

PATTERNS = [SEPARATORS["paragraph"], SEPARATORS["line"], re.escape("##"), re.escape(" \n")]


@given(
    text=st.text("a# \n\t\u2028", max_size=60),
    pattern=st.sampled_from(PATTERNS),
    characters=st.integers(1, 7),
)
def test_in_parts_as_in_one_piece(text, pattern, characters):
    found = split_stream(io.StringIO(text, newline=""), pattern, characters)
    assert list(found) == re.split(pattern, text)


def test_the_byte_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n\ntwo " + "ğ".encode("iso-8859-9"))
    with pytest.raises(ValueError, match=r"latin\.txt, whose byte 12 is 0xf0"):
        list(file_documents(path, separator_pattern("paragraph", None)))
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    assert list(file_documents(path, separator_pattern("paragraph", None))) == ["one", "two"]
    assert list(file_documents(path, separator_pattern("file", None))) == ["one\n\ntwo"]
