"""X-Matrix credentials: the header that carries them, and what is signed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.errors import BadSignature
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.request_signing import (
    XMatrix,
    credentials_of,
    exact_content,
    parse_x_matrix,
    signed_request,
)

TOKEN = "!#$%&'*+-.^_`|~0123456789abcXYZ:"
TEA = XMatrix(ServerName("tea.test"), ServerName("[::1]:8448"), "ed25519:1", "c2ln/+")
HEADER = 'X-Matrix origin="tea.test",destination="[::1]:8448",key="ed25519:1",sig="c2ln/+"'

server_names = st.sampled_from(["tea.test", "TEA.test:1", "127.0.0.1:8448", "[::1]", "[fd00::1]:8448"])
texts = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"), max_size=20)
blanks = st.text(" \t", max_size=3)


@st.composite
def parameters(draw: st.DrawFn, values: dict[str, str]) -> str:
    """The values as a list of parameters, in any of the forms that the grammar knows."""
    extra = draw(
        st.dictionaries(st.text("abcXYZ-", min_size=1, max_size=5).map("x".__add__), texts, max_size=2)
    )
    unknown = {name.lower(): value for name, value in extra.items()}
    parts = []
    for name, value in draw(st.permutations([*values.items(), *unknown.items()])):
        written = "".join(draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in name)
        if value and set(value) <= set(TOKEN) and draw(st.booleans()):
            form = value
        else:
            form = (
                '"'
                + "".join(
                    "\\" + letter if letter in '"\\' or draw(st.booleans()) else letter for letter in value
                )
                + '"'
            )
        parts.append(f"{written}{draw(blanks)}={draw(blanks)}{form}")
    separators = st.sampled_from([",", " , ", "\t,", ",,", ", ,"])
    return "".join(part if index == 0 else draw(separators) + part for index, part in enumerate(parts))


@given(st.data())
def test_every_form_of_the_grammar_is_read(data: st.DataObject) -> None:
    values = {"origin": data.draw(server_names), "key": data.draw(texts), "sig": data.draw(texts)}
    destination = data.draw(st.none() | server_names)
    given_values = values if destination is None else {**values, "destination": destination}
    scheme = data.draw(st.sampled_from(["X-Matrix ", "x-matrix   ", "X-MATRIX "]))
    credentials = parse_x_matrix(scheme + data.draw(parameters(given_values)) + data.draw(blanks))

    assert credentials == XMatrix(
        ServerName(values["origin"]),
        None if destination is None else ServerName(destination),
        values["key"],
        values["sig"],
    )


@given(st.text() | texts.map("X-Matrix ".__add__) | st.text().map(f"{HEADER},".__add__))
def test_any_text_is_read_or_refused(header: str) -> None:
    try:
        credentials = parse_x_matrix(header)
    except BadSignature:
        return
    assert isinstance(credentials, XMatrix)


def test_what_is_written_is_read() -> None:
    assert TEA.to_header() == HEADER
    assert parse_x_matrix(HEADER) == TEA


@pytest.mark.invariant("SEC-FED-1")
@pytest.mark.parametrize(
    "header",
    [
        "",
        "X-Matrix",
        "X-Matrix ",
        "X-Matrix ,",
        "Bearer token",
        'X-Matrixorigin="tea.test",key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="tea.test",key="ed25519:1"',
        'X-Matrix origin="tea.test",sig="c2ln"',
        'X-Matrix key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="tea.test",origin="tea.test",key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="tea.test",ORIGIN="evil.test",key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="tea.test",key="ed25519:1",sig="c2ln",x=1,X=2',
        'X-Matrix origin="tea.test" key="ed25519:1" sig="c2ln"',
        'X-Matrix origin="tea.test;key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="tea.test",key="ed25519:1",sig="c2ln',
        'X-Matrix origin="tea.test",key="ed25519:1",sig="c2ln\\',
        "X-Matrix origin=tea.test,key=ed25519:1,sig=c2/n",
        'X-Matrix origin="tea test",key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="tea.test/",key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="",key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="tea.test",destination="",key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="tea.test",key="ed25519:1",sig="c2ln",=1',
        'X-Matrix origin="tea.test",key="ed25519:1",sig="c2\x00n"',
    ],
)
def test_sec_fed_1_other_headers_are_refused(header: str) -> None:
    with pytest.raises(BadSignature):
        parse_x_matrix(header)


@pytest.mark.invariant("SEC-FED-1")
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [HEADER, HEADER],
        [HEADER, HEADER.replace("tea.test", "evil.test").replace("ed25519:1", "ed25519:2")],
        [HEADER, HEADER.replace("[::1]:8448", "evil.test").replace("ed25519:1", "ed25519:2")],
        [HEADER, "Bearer token"],
        [HEADER.replace("ed25519:1", f"ed25519:{number}") for number in range(11)],
    ],
)
def test_sec_fed_1_headers_that_disagree_are_refused(headers: list[str]) -> None:
    with pytest.raises(BadSignature):
        credentials_of(headers)


def test_a_request_may_be_signed_with_several_keys() -> None:
    credentials = credentials_of([HEADER, HEADER.replace("ed25519:1", "ed25519:2")])
    signed = signed_request(credentials, ServerName("our.test"), "GET", "/tea?x=%2F")

    assert signed == {
        "method": "GET",
        "uri": "/tea?x=%2F",
        "origin": "tea.test",
        "destination": "our.test",
        "signatures": {"tea.test": {"ed25519:1": "c2ln/+", "ed25519:2": "c2ln/+"}},
    }


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":[1e+16,1E5,-0,1.0,0.10],"b":123456789012345678901234567890,"c":-9007199254740993}',
        '{"a":{"b":"1.50 \\"é\\"","c":null,"d":[true,false]},"e":[]}'.encode(),
        b"{}",
    ],
)
def test_numbers_stay_as_their_sender_wrote_them(body: bytes) -> None:
    assert canonical_json({"content": exact_content(body)}) == b'{"content":' + body + b"}"
