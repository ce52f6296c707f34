from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unpaddedbase64 import decode_base64 as decode_leniently
from unpaddedbase64 import encode_base64 as encode_otherwise

from homeserver.protocol.unpadded_base64 import decode_base64, encode_base64, encode_url_safe_base64


@given(st.binary(max_size=70))
def test_base64_is_that_of_a_second_implementation(data: bytes) -> None:
    assert encode_base64(data) == encode_otherwise(data)
    assert encode_url_safe_base64(data) == encode_otherwise(data, urlsafe=True)
    for text in (encode_base64(data), encode_url_safe_base64(data)):
        assert decode_base64(text) == data
        assert decode_base64(text + "=" * (-len(text) % 4)) == data


@given(st.text(alphabet="AQZaz09+/-_= \n*é", max_size=12))
def test_what_is_read_is_what_others_read(text: str) -> None:
    data = decode_base64(text)
    if data is not None:
        assert data == decode_leniently(text.rstrip("="))


@pytest.mark.parametrize(
    "text", ["A", "QQ=", "QQ===", "=QQ=", "Q Q", "QQ\n", "Q*", "é", "\ud800", None, 1, b"QQ", ["QQ"]]
)
def test_what_is_no_base64_is_seen(text: object) -> None:
    assert decode_base64(text) is None
