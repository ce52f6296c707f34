"""What the people of a random room try to do, allowed or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from homeserver.protocol.auth_events import AUTHORISER
from homeserver.protocol.events import StateKey
from homeserver.protocol.identifiers import ServerName
from homeserver.protocol.signing import SigningKey, sign_json
from homeserver.protocol.strict_json import JsonObject
from homeserver.protocol.unpadded_base64 import encode_base64
from synapse_compat_tests.deviations import LEVEL_KEYS
from synapse_compat_tests.odd_json import odd_value

ALICE: Final = "@alice:one.test"
PEOPLE: Final = (
    *(ALICE, "@bob:one.test", "@carol:two.test:8448", "@Dave E.:two.test:8448", "@eve:three.test"),
    *("@frank/+=:three.test", "@grå:[2001:db8::1]:443"),
)
"""Alice creates every room."""
SERVERS: Final = ("one.test", "two.test:8448", "three.test", "[2001:db8::1]:443")
TOKENS: Final = ("token", "té")

_IDENTITY_SERVER: Final = ServerName("identity.test")
_IDENTITY_KEYS: Final = tuple(SigningKey.from_seed("0", bytes([number] * 32)) for number in (1, 2))
_EVENT_TYPES: Final = ("m.room.power_levels", "m.room.topic", "m.room.message", "m.room.third_party_invite")


@dataclass(frozen=True)
class Draft:
    """An event before it has a place in its room."""

    type: str
    sender: str
    state_key: str | None
    content: JsonObject
    top_level: JsonObject = field(default_factory=dict)
    """What else the event holds beside its content."""


@dataclass(frozen=True)
class Drafting:
    """How one thinks of something to do: by the state at one place of a room, in one room version."""

    random: Random
    version: int
    state: Mapping[StateKey, JsonObject]
    event_ids: Sequence[str]
    """Events that a redaction may name."""

    def draft(self) -> Draft:
        """Something that somebody tries."""
        kinds = (
            *[self._join] * 4, *[self._moderate] * 8, *[self._invite] * 3, *[self._power_levels] * 5,
            *[self._take_up_token] * 3, *[self._leave] * 3, *[self._knock] * 4, *[self._restricted_join] * 4,
            *[self._topic] * 2, *[self._own_state] * 2, self._join_rules, self._message, self._redact,
            self._aliases, self._second_create, self._odd_member,
        )  # fmt: skip
        draft = self.random.choice(kinds)()
        if self.random.random() < 0.1:
            key = self.random.choice(("extra", "é", "reason", "allow", AUTHORISER))
            draft.content[key] = odd_value(self.random, self.version)
        return draft

    def _join(self) -> Draft:
        user_id = self._anyone()
        content = {"membership": "join", "displayname": str(self.random.randrange(100))}
        return Draft("m.room.member", user_id, user_id, content)

    def _leave(self) -> Draft:
        user_id = self._someone("join", "invite", "invite", "knock", "knock", "ban")
        return Draft("m.room.member", user_id, user_id, {"membership": "leave"})

    def _knock(self) -> Draft:
        if self._join_rule() not in ("knock", "knock_restricted"):
            return self._set_join_rule(self.random.choice(("knock", "knock_restricted")))
        user_id = self._someone("join", "invite", "invite", "ban", "leave", "leave", "nothing")
        return Draft("m.room.member", user_id, user_id, {"membership": "knock"})

    def _moderate(self) -> Draft:
        banned = [user_id for user_id in PEOPLE if self._membership(user_id) == "ban"]
        if banned and self.random.random() < 0.5:
            membership, target = "leave", self.random.choice(banned)
        else:
            membership = self.random.choice(("leave", "ban", "ban"))
            target = self._someone("join", "join", "invite", "knock", "leave")
        return Draft("m.room.member", self._someone_joined(), target, {"membership": membership})

    def _invite(self) -> Draft:
        return Draft("m.room.member", self._someone_joined(), self._anyone(), {"membership": "invite"})

    def _restricted_join(self) -> Draft:
        if self._join_rule() not in ("restricted", "knock_restricted") and self.random.random() < 0.7:
            return self._set_join_rule(self.random.choice(("restricted", "knock_restricted")))
        user_id = self._someone("leave", "leave", "nothing", "knock", "invite", "ban")
        authoriser: Any = self._someone_joined()
        if self.random.random() < 0.15:
            authoriser = odd_value(self.random, self.version)
        content = {"membership": "join", AUTHORISER: authoriser}
        return Draft("m.room.member", user_id, user_id, content)

    def _odd_member(self) -> Draft:
        sender = self._someone_joined()
        content: JsonObject = {"membership": odd_value(self.random, self.version)}
        if self.random.random() < 0.3:
            content = {}
        state_key = self.random.choice((*PEOPLE, sender, "", "bob", "@bob", None))
        return Draft("m.room.member", sender, state_key, content)

    def _issue_token(self) -> Draft:
        keys = [encode_base64(key.public_key) for key in _IDENTITY_KEYS]
        content: JsonObject = {"display_name": "somebody", "key_validity_url": "https://identity.test"}
        match self.random.randrange(5):
            case 0:
                content["public_key"] = keys[0].replace("+", "-").replace("/", "_")
            case 1:
                content["public_keys"] = [{"public_key": key} for key in keys]
            case 2:
                content.update(public_key=keys[1], public_keys=[{"public_key": keys[0]}])
            case 3:
                content["public_key"] = self._oddly(keys[0], 0.3)
            case _:
                content["public_keys"] = self._oddly([{"public_key": self._oddly(keys[1], 0.3)}], 0.3)
        return Draft("m.room.third_party_invite", self._someone_joined(), self.random.choice(TOKENS), content)

    def _take_up_token(self) -> Draft:
        issued = [event for key, event in self.state.items() if key[0] == "m.room.third_party_invite"]
        if not issued or self.random.random() < 0.1:
            return self._issue_token()
        token_event = self.random.choice(issued)
        target, token = self._anyone(), token_event["state_key"]
        signed = {"mxid": self._usually(target, PEOPLE), "token": token}
        signed = sign_json(signed, _IDENTITY_SERVER, self.random.choice(_IDENTITY_KEYS))
        if self.random.random() < 0.2:
            signed[self.random.choice(("mxid", "token", "signatures"))] = odd_value(self.random, self.version)
        if self.random.random() < 0.1:
            del signed[self.random.choice(("mxid", "token", "signatures"))]
        invite = self._oddly({"display_name": "somebody", "signed": self._oddly(signed, 0.05)}, 0.05)
        content = {"membership": "invite", "third_party_invite": invite}
        return Draft("m.room.member", self._usually(token_event["sender"], PEOPLE), target, content)

    def _power_levels(self) -> Draft:
        current = self.state.get(("m.room.power_levels", ""))
        content: JsonObject = {} if current is None else dict(current["content"])
        for _ in range(self.random.randint(1, 2)):
            self._change_level(content)
        if self.random.random() < 0.06:
            odd_key = self.random.choice((*LEVEL_KEYS, "users", "events", "notifications"))
            content[odd_key] = odd_value(self.random, self.version)
        return Draft("m.room.power_levels", self._someone_joined(), "", content)

    def _change_level(self, content: JsonObject) -> None:
        where = self.random.choice(("top", "users", "users", "users", "events", "notifications", "gone"))
        if where == "top":
            content[self.random.choice(LEVEL_KEYS)] = self._level()
        elif where == "gone":
            content.pop(self.random.choice((*LEVEL_KEYS, "users", "events", "notifications")), None)
        else:
            names = {"users": PEOPLE, "events": _EVENT_TYPES, "notifications": ("room", "other")}[where]
            levels = content.get(where, {})
            if not isinstance(levels, dict):
                return
            name = self.random.choice(names)
            if self.random.random() < 0.02:
                name = self.random.choice(("bob", "@bob", "", "@bob:", "@:one.test"))
            levels = {**levels, name: self._level()}
            if self.random.random() < 0.15:
                del levels[self.random.choice(list(levels))]
            content[where] = levels

    def _level(self) -> Any:
        if self.random.random() < 0.02:
            return odd_value(self.random, self.version)
        level = self.random.choice((0, 0, 25, 49, 50, 50, 51, 75, 99, 100, 100, 101, -10, 2**53 - 1))
        if self.version < 10 and self.random.random() < 0.15:
            return self.random.choice((str(level), f" {level} ", f"0{level}", f"+{level}"))
        if self.version < 6 and self.random.random() < 0.1:
            return level + self.random.choice((0.0, 0.5, 0.9))
        return level

    def _join_rules(self) -> Draft:
        return self._set_join_rule(self.random.choice(("public", "public", "invite", "private", "odd")))

    def _set_join_rule(self, rule: str) -> Draft:
        content: JsonObject = {"join_rule": rule}
        if rule in ("restricted", "knock_restricted"):
            content["allow"] = [{"type": "m.room_membership", "room_id": "!other:one.test"}]
        if rule == "odd" and self.random.random() < 0.3:
            content = {"join_rule": odd_value(self.random, self.version)}
        return Draft("m.room.join_rules", self._someone_joined(), "", content)

    def _topic(self) -> Draft:
        event_type, key = self.random.choice(
            (("m.room.topic", "topic"), ("m.room.history_visibility", "history_visibility"))
        )
        content = {key: self._oddly(str(self.random.randrange(100)), 0.2)}
        return Draft(event_type, self._someone_joined(), self.random.choice(("", "", "", "other")), content)

    def _message(self) -> Draft:
        content = {"msgtype": "m.text", "body": self._oddly("hello", 0.3)}
        return Draft("m.room.message", self._someone_joined(), None, content)

    def _redact(self) -> Draft:
        redacts = self._oddly(self.random.choice(self.event_ids), 0.1)
        where = {"redacts": redacts} if self.random.random() < 0.9 else {}
        content, top_level = (where, {}) if self.version >= 11 else ({"reason": "none"}, where)
        return Draft("m.room.redaction", self._someone_joined(), None, content, top_level)

    def _aliases(self) -> Draft:
        sender = self._anyone()
        own_server = sender.partition(":")[2]
        state_key = self.random.choice((own_server, own_server, *SERVERS, "", None))
        return Draft("m.room.aliases", sender, state_key, {"aliases": [f"#a:{own_server}"]})

    def _own_state(self) -> Draft:
        sender = self._someone_joined()
        state_key = self.random.choice((*[sender] * 5, *PEOPLE, "@", "@nobody"))
        return Draft("org.example.state", sender, state_key, {"value": odd_value(self.random, self.version)})

    def _second_create(self) -> Draft:
        if self.version >= 12:  # without a room ID it would be another room's
            return self._message()
        content = {"creator": ALICE, "room_version": str(self.version)}
        return Draft("m.room.create", ALICE, self.random.choice(("", "other")), content)

    def _join_rule(self) -> object:
        rules = self.state.get(("m.room.join_rules", ""))
        return None if rules is None else rules["content"].get("join_rule")

    def _anyone(self) -> str:
        return self.random.choice(PEOPLE)

    def _someone_joined(self) -> str:
        """The sender of most events."""
        return self._someone("join") if self.random.random() < 0.9 else self._anyone()

    def _someone(self, *memberships: str) -> str:
        """One whose membership is one of these, if there is anyone."""
        wanted = self.random.choice(memberships)
        found = [user_id for user_id in PEOPLE if self._membership(user_id) == wanted]
        return self.random.choice(found or PEOPLE)

    def _membership(self, user_id: str) -> object:
        member = self.state.get(("m.room.member", user_id))
        return "nothing" if member is None else member["content"].get("membership")

    def _usually(self, value: Any, others: Sequence[Any]) -> Any:
        return value if self.random.random() < 0.85 else self.random.choice(others)

    def _oddly(self, value: Any, probability: float) -> Any:
        return odd_value(self.random, self.version) if self.random.random() < probability else value
