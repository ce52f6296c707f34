"""Rule 4.4.1 of version 11, rule 5.4.1 of version 12: invitations to someone who had no user ID yet."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from nacl.signing import SigningKey

from homeserver.protocol.canonical_json import canonical_json
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.third_party_invites import MAX_VERIFICATIONS
from tests.protocol.rooms import BOB, DAVE, EVE, IVY, MIA, V11, V12, ZOE, Draft, Room, join_rules, member
from tests.protocol.rule_cases import refusing_rule

# Seeds whose public keys and signatures differ between the two alphabets of base64.
IDENTITY_SERVER = SigningKey(bytes([7]) * 32)
SOMEONE_ELSE = SigningKey(bytes([8]) * 32)
BOTH_VERSIONS = pytest.mark.parametrize(("version", "member_rule"), [(V11, "4"), (V12, "5")])


def standard(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def url_safe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


PUBLIC_KEY = standard(IDENTITY_SERVER.verify_key.encode())
OTHER_PUBLIC_KEY = standard(SOMEONE_ELSE.verify_key.encode())


def signed(mxid: str = DAVE, token: str = "token", key: SigningKey = IDENTITY_SERVER) -> JsonObject:
    statement: JsonObject = {"mxid": mxid, "token": token, "sender": ZOE}
    signature = key.sign(canonical_json(statement)).signature
    return {**statement, "signatures": {"identity.test": {"ed25519:0": standard(signature)}}}


def issued(**content: Any) -> Draft:
    return Draft("m.room.third_party_invite", ZOE, "token", {"public_key": PUBLIC_KEY, **content})


def invite(target: str = DAVE, sender: str = ZOE, **third_party_invite: Any) -> Draft:
    return member(target, "invite", sender, third_party_invite=third_party_invite)


def rule_for(version: RoomVersion, draft: Draft, *state: Draft) -> str | None:
    room = Room.with_members(version)
    room.put(*(state or (issued(),)))
    return refusing_rule(version, room.event(draft), room.state)


@BOTH_VERSIONS
def test_a_signed_invitation_is_taken_up(version: RoomVersion, member_rule: str) -> None:
    assert rule_for(version, invite(signed=signed())) is None


@BOTH_VERSIONS
def test_neither_join_rule_nor_membership_of_the_sender_matters(
    version: RoomVersion, member_rule: str
) -> None:
    gone = member(ZOE, "leave")

    assert rule_for(version, invite(signed=signed()), issued(), gone, join_rules("private")) is None


@BOTH_VERSIONS
def test_a_member_may_be_invited_again_by_a_signed_invitation(version: RoomVersion, member_rule: str) -> None:
    assert rule_for(version, invite(BOB, signed=signed(BOB))) is None


@BOTH_VERSIONS
def test_each_condition_has_its_rule(version: RoomVersion, member_rule: str) -> None:
    room_without_token = (join_rules("public"),)
    without_mxid = {key: value for key, value in signed().items() if key != "mxid"}
    without_token = {key: value for key, value in signed().items() if key != "token"}
    malformed = member(DAVE, "invite", ZOE, third_party_invite=None)

    for draft, state, rule in (
        (invite(EVE, signed=signed(EVE)), (), "4.1.1"),
        (invite(EVE), (), "4.1.1"),
        (invite(display_name="dave"), (), "4.1.2"),
        (malformed, (), "4.1.2"),
        (invite(signed=[]), (), "4.1.3"),
        (invite(signed=without_mxid), (), "4.1.3"),
        (invite(signed=without_token), (), "4.1.3"),
        (invite(IVY, signed=signed()), (), "4.1.4"),
        (invite(signed={**signed(), "mxid": [DAVE]}), (), "4.1.4"),
        (invite(signed=signed()), room_without_token, "4.1.5"),
        (invite(signed=signed(token="another")), (), "4.1.5"),
        (invite(signed={**signed(), "token": ["token"]}), (), "4.1.5"),
        (invite(sender=MIA, signed=signed()), (), "4.1.6"),
        (invite(signed=signed(key=SOMEONE_ELSE)), (), "4.1.8"),
        (invite(signed={**signed(), "sender": MIA}), (), "4.1.8"),
        (invite(signed={**signed(), "signatures": 1}), (), "4.1.8"),
        (invite(signed={**signed(), "signatures": {"identity.test": "ed25519:0"}}), (), "4.1.8"),
        (invite(signed={**signed(), "signatures": {"identity.test": {"ed25519:0": "A"}}}), (), "4.1.8"),
        (invite(signed={**signed(), "signatures": {"identity.test": {"ed25519:0": "ä"}}}), (), "4.1.8"),
    ):
        assert rule_for(version, draft, *state) == f"{member_rule}.{rule}"


@BOTH_VERSIONS
def test_a_revoked_invitation_has_no_key(version: RoomVersion, member_rule: str) -> None:
    revoked = Draft("m.room.third_party_invite", ZOE, "token", {})

    assert rule_for(version, invite(signed=signed()), revoked) == f"{member_rule}.4.1.8"


@BOTH_VERSIONS
def test_any_of_the_keys_will_do(version: RoomVersion, member_rule: str) -> None:
    by_another = invite(signed=signed(key=SOMEONE_ELSE))

    assert rule_for(version, by_another, issued(public_keys=[{"public_key": OTHER_PUBLIC_KEY}])) is None
    assert (
        rule_for(version, by_another, issued(public_keys=[3, "x", {}, {"public_key": OTHER_PUBLIC_KEY}]))
        is None
    )
    assert rule_for(version, by_another, issued(public_keys=OTHER_PUBLIC_KEY)) == f"{member_rule}.4.1.8"


@BOTH_VERSIONS
def test_any_of_the_signatures_will_do(version: RoomVersion, member_rule: str) -> None:
    right = signed()["signatures"]["identity.test"]["ed25519:0"]
    wrong = signed(key=SOMEONE_ELSE)["signatures"]["identity.test"]["ed25519:0"]
    two_keys = {**signed(), "signatures": {"a.test": {"ed25519:0": wrong}, "b.test": {"ed25519:x": right}}}
    other_algorithm = {**signed(), "signatures": {"a.test": {"rsa:0": right}}}

    assert rule_for(version, invite(signed=two_keys)) is None
    assert rule_for(version, invite(signed=other_algorithm)) == f"{member_rule}.4.1.8"


@BOTH_VERSIONS
def test_unsigned_is_not_part_of_what_was_signed(version: RoomVersion, member_rule: str) -> None:
    assert rule_for(version, invite(signed={**signed(), "unsigned": {"age": 1}})) is None


@BOTH_VERSIONS
def test_keys_and_signatures_come_in_both_alphabets(version: RoomVersion, member_rule: str) -> None:
    for seed in range(20):
        key = SigningKey(bytes([seed]) * 32)
        statement = signed(key=key)
        signature = base64.b64decode(statement["signatures"]["identity.test"]["ed25519:0"] + "==")
        in_url_alphabet = {**statement, "signatures": {"i": {"ed25519:0": url_safe(signature)}}}
        padded = base64.b64encode(key.verify_key.encode()).decode()

        state = issued(public_key=url_safe(key.verify_key.encode()))
        assert rule_for(version, invite(signed=statement), state) is None
        assert rule_for(version, invite(signed=in_url_alphabet), issued(public_key=padded)) is None


def test_two_events_cannot_cost_more_than_a_few_verifications() -> None:
    wrong = [SigningKey(number.to_bytes(32, "big")) for number in range(1, MAX_VERIFICATIONS + 1)]
    keys = [{"public_key": standard(key.verify_key.encode())} for key in wrong]
    state = issued(public_key=None, public_keys=[*keys, {"public_key": PUBLIC_KEY}])

    assert rule_for(V12, invite(signed=signed()), state) == "5.4.1.8"
