"""Base64 without padding, in which keys, signatures and hashes are written.

Source: Appendices, "Unpadded Base64".
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from typing import Final

_TO_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL_SAFE: Final = str.maketrans("-_", "+/")


def encode_base64(data: bytes) -> str:
    """Bytes in unpadded base64."""
    return b2a_base64(data, newline=False).rstrip(b"=").decode()


def encode_url_safe_base64(data: bytes) -> str:
    """Bytes in URL-safe unpadded base64."""
    return b2a_base64(data, newline=False).rstrip(b"=").translate(_TO_URL_SAFE).decode()


def decode_base64(text: object) -> bytes | None:
    """The bytes that a text in base64 stands for; None for all that is no such text.

    The padding may be there or not, and the alphabet may be the URL-safe one, since other servers read
    both; any other character, blanks included, is refused.
    """
    if not isinstance(text, str):
        return None
    if "-" in text or "_" in text:
        text = text.translate(_FROM_URL_SAFE)
    if "=" not in text:
        text += "=" * (-len(text) % 4)
    try:
        return a2b_base64(text, strict_mode=True)
    except ValueError:
        return None
