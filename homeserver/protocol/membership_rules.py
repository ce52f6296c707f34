"""Who may join, invite, leave, remove, ban and knock: the authorization of m.room.member events.

Source: "Authorization rules" of each room version, rule 4 (numbers are those of version 11).
"""

from __future__ import annotations

from collections.abc import Mapping

from homeserver.protocol.auth_events import AUTHORISER, CREATE, JOIN_RULES, POWER_LEVELS
from homeserver.protocol.errors import NotAllowed
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import is_user_id
from homeserver.protocol.power_levels import PowerLevels, creators_of
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.third_party_invites import is_signed_by_a_key_of


def membership_of(state: Mapping[StateKey, Pdu], user_id: str) -> object:
    """The membership of a user in a state; None for one who was never a member."""
    member = state.get(("m.room.member", user_id))
    return None if member is None else member.membership


def check_membership(version: RoomVersion, event: Pdu, state: Mapping[StateKey, Pdu]) -> str:
    """Check an m.room.member event against a state that holds the create event.

    Returns the number of the rule that allows it, raises NotAllowed with that of the one that refuses it.
    The signature by the server of the authorising user (rule 4.2.1) was verified with the event's other
    signatures: here that user must only be one.
    """
    target = event.state_key
    if target is None or "membership" not in event.content:
        raise NotAllowed(version.rule("4.1"), "a member event needs a state_key and a membership")
    if version.restricted_join_rules and AUTHORISER in event.content:
        authoriser = event.content[AUTHORISER]
        if not is_user_id(authoriser):
            raise NotAllowed(version.rule("4.2.1"), f"{AUTHORISER} is {authoriser!r:.100}, not a user ID")
    levels = PowerLevels.of(version, state[CREATE], state.get(POWER_LEVELS))
    match event.membership:
        case "join":
            return _check_join(version, event, target, state, levels)
        case "invite":
            return _check_invite(version, event, target, state, levels)
        case "leave":
            return _check_leave(version, event, target, state, levels)
        case "ban":
            return _check_ban(version, event, target, state, levels)
        case "knock" if version.knock_join_rules:
            return _check_knock(version, event, target, state)
        case other:
            raise NotAllowed(version.rule("4.8"), f"{other!r:.100} is not a membership")


def _check_join(
    version: RoomVersion, event: Pdu, target: str, state: Mapping[StateKey, Pdu], levels: PowerLevels
) -> str:
    create = state[CREATE]
    if event.prev_events == (create.event_id,) and target in creators_of(version, create)[:1]:
        return version.rule("4.3.1")
    if event.sender != target:
        raise NotAllowed(version.rule("4.3.2"), f"{event.sender} cannot join for {target}")
    membership = membership_of(state, event.sender)
    if membership == "ban":
        raise NotAllowed(version.rule("4.3.3"), f"{event.sender} is banned")
    join_rule = _join_rule(state)
    if join_rule == "public":
        return version.rule("4.3.6")
    is_expected = membership in ("invite", "join")
    if join_rule == "invite" or (join_rule == "knock" and "knock" in version.knock_join_rules):
        if is_expected:
            return version.rule("4.3.4")
        raise NotAllowed(
            version.rule("4.3.7"), f"{event.sender} is not invited, and the join rule is {join_rule}"
        )
    if join_rule in version.restricted_join_rules:
        if is_expected:
            return version.rule("4.3.5.1")
        _check_authoriser(version, event, state, levels)
        return version.rule("4.3.5.3")
    raise NotAllowed(version.rule("4.3.7"), f"nobody can join under the join rule {join_rule!r:.100}")


def _check_authoriser(
    version: RoomVersion, event: Pdu, state: Mapping[StateKey, Pdu], levels: PowerLevels
) -> None:
    rule = version.rule("4.3.5.2")
    authoriser = event.content.get(AUTHORISER)
    if authoriser is None:
        raise NotAllowed(rule, f"{event.sender} is not invited, and {AUTHORISER} names nobody")
    if membership_of(state, authoriser) != "join":
        raise NotAllowed(rule, f"{authoriser}, who let {event.sender} in, is not joined")
    if levels.user_level(authoriser) < levels.invite:
        raise NotAllowed(
            rule,
            f"{authoriser}, who let {event.sender} in, has level {levels.user_level(authoriser)}, "
            f"and inviting takes {levels.invite}",
        )


def _check_invite(
    version: RoomVersion, event: Pdu, target: str, state: Mapping[StateKey, Pdu], levels: PowerLevels
) -> str:
    if "third_party_invite" in event.content:
        return _check_third_party_invite(version, event, target, state)
    _check_sender_joined(version, "4.4.2", event, state)
    membership = membership_of(state, target)
    if membership in ("join", "ban"):
        raise NotAllowed(version.rule("4.4.3"), f"{target} cannot be invited: the membership is {membership}")
    level = levels.user_level(event.sender)
    if level < levels.invite:
        raise NotAllowed(
            version.rule("4.4.5"), f"{event.sender} has level {level}, and inviting takes {levels.invite}"
        )
    return version.rule("4.4.4")


def _check_third_party_invite(
    version: RoomVersion, event: Pdu, target: str, state: Mapping[StateKey, Pdu]
) -> str:
    if membership_of(state, target) == "ban":
        raise NotAllowed(version.rule("4.4.1.1"), f"{target} is banned")
    invite = event.content["third_party_invite"]
    if not isinstance(invite, dict) or "signed" not in invite:
        raise NotAllowed(version.rule("4.4.1.2"), "third_party_invite has no signed property")
    signed = invite["signed"]
    if not isinstance(signed, dict) or "mxid" not in signed or "token" not in signed:
        raise NotAllowed(version.rule("4.4.1.3"), "signed has no mxid or no token")
    if signed["mxid"] != target:
        raise NotAllowed(
            version.rule("4.4.1.4"), f"the invitation is for {signed['mxid']!r:.100}, not for {target}"
        )
    token = signed["token"]
    issued = state.get(("m.room.third_party_invite", token)) if isinstance(token, str) else None
    if issued is None:
        raise NotAllowed(version.rule("4.4.1.5"), f"no invitation has the token {token!r:.100}")
    if event.sender != issued.sender:
        raise NotAllowed(
            version.rule("4.4.1.6"), f"the invitation was issued by {issued.sender}, not by {event.sender}"
        )
    if not is_signed_by_a_key_of(signed, issued.content):
        raise NotAllowed(version.rule("4.4.1.8"), "no key of the invitation fits any signature of signed")
    return version.rule("4.4.1.7")


def _check_leave(
    version: RoomVersion, event: Pdu, target: str, state: Mapping[StateKey, Pdu], levels: PowerLevels
) -> str:
    membership = membership_of(state, target)
    if event.sender == target:
        if membership not in ("invite", "join", "knock"):
            raise NotAllowed(
                version.rule("4.5.1"), f"{target} cannot leave: the membership is {membership or 'leave'}"
            )
        return version.rule("4.5.1")
    _check_sender_joined(version, "4.5.2", event, state)
    level = levels.user_level(event.sender)
    if membership == "ban" and level < levels.ban:
        raise NotAllowed(
            version.rule("4.5.3"), f"{event.sender} has level {level}, and to unban takes {levels.ban}"
        )
    _check_outranks(version, "4.5.5", event, target, levels, levels.kick)
    return version.rule("4.5.4")


def _check_ban(
    version: RoomVersion, event: Pdu, target: str, state: Mapping[StateKey, Pdu], levels: PowerLevels
) -> str:
    _check_sender_joined(version, "4.6.1", event, state)
    _check_outranks(version, "4.6.3", event, target, levels, levels.ban)
    return version.rule("4.6.2")


def _check_knock(version: RoomVersion, event: Pdu, target: str, state: Mapping[StateKey, Pdu]) -> str:
    join_rule = _join_rule(state)
    if join_rule not in version.knock_join_rules:
        raise NotAllowed(version.rule("4.7.1"), f"nobody can knock under the join rule {join_rule!r:.100}")
    if event.sender != target:
        raise NotAllowed(version.rule("4.7.2"), f"{event.sender} cannot knock for {target}")
    membership = membership_of(state, target)
    if membership in ("ban", "invite", "join"):
        raise NotAllowed(version.rule("4.7.4"), f"{target} cannot knock: the membership is {membership}")
    return version.rule("4.7.3")


def _check_sender_joined(version: RoomVersion, rule: str, event: Pdu, state: Mapping[StateKey, Pdu]) -> None:
    if membership_of(state, event.sender) != "join":
        raise NotAllowed(version.rule(rule), f"{event.sender} is not joined")


def _check_outranks(
    version: RoomVersion, rule: str, event: Pdu, target: str, levels: PowerLevels, required: int
) -> None:
    level, target_level = levels.user_level(event.sender), levels.user_level(target)
    if level < required or target_level >= level:
        raise NotAllowed(
            version.rule(rule),
            f"{event.sender} has level {level}, {target} has {target_level}; it takes more, and {required}",
        )


def _join_rule(state: Mapping[StateKey, Pdu]) -> str | None:
    """The join rule in force, `invite` unless the state says otherwise; None for one that is no string."""
    join_rules = state.get(JOIN_RULES)
    join_rule = "invite" if join_rules is None else join_rules.content.get("join_rule", "invite")
    return join_rule if isinstance(join_rule, str) else None
