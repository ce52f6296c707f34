"""Makes a compression dictionary out of made-up events: python -m storage.compression.train FILE.

The events only have to look like those of a real server; a dictionary trained on other names serves as well.
"""

from __future__ import annotations

import random
import string
import sys
from pathlib import Path
from typing import Any

import orjson
import zstandard

_SIZE_BYTES = 16 * 1024
_SAMPLES = 20_000
_SERVERS = ["matrix.org", "example.com", "lair.localhost", "chat.example.org", "localhost:8448", "kde.org"]
_TEXT = (
    "the be to of and a in that have I it for not on with he as you do at this but his by from they "
    "we say her she or an will my one all would there their what so up out if about who get which go "
    "me when make can like time no just him know take people into year your good some could them see "
    "other than then now look only come its over think also back after use two how our work first "
    "well way even new want because any these give day most us hello thanks yes okay server room "
    "message https www com please today tomorrow maybe really great "
)
_WORDS = _TEXT.split()


def _hash(random_: random.Random) -> str:
    return "".join(random_.choices(string.ascii_letters + string.digits + "-_", k=43))


def _user(random_: random.Random) -> str:
    return f"@{random_.choice(_WORDS).lower()}{random_.randrange(1000)}:{random_.choice(_SERVERS)}"


def _text(random_: random.Random) -> str:
    return " ".join(random_.choices(_WORDS, k=random_.randrange(1, 25)))


def _member(random_: random.Random) -> dict[str, Any]:
    content: dict[str, Any] = {
        "membership": random_.choice(["join", "join", "join", "leave", "invite", "ban"])
    }
    if random_.random() < 0.8:
        content["displayname"] = random_.choice(_WORDS)
    if random_.random() < 0.4:
        content["avatar_url"] = f"mxc://{random_.choice(_SERVERS)}/{_hash(random_)[:24]}"
    return {"type": "m.room.member", "state_key": _user(random_), "content": content}


def _message(random_: random.Random) -> dict[str, Any]:
    content: dict[str, Any] = {"msgtype": random_.choice(["m.text", "m.text", "m.notice", "m.emote"])}
    content["body"] = _text(random_)
    if random_.random() < 0.3:
        content |= {"format": "org.matrix.custom.html", "formatted_body": f"<p>{content['body']}</p>"}
    if random_.random() < 0.3:
        content["m.mentions"] = {"user_ids": [_user(random_)]} if random_.random() < 0.5 else {}
    if random_.random() < 0.2:
        content["m.relates_to"] = {"m.in_reply_to": {"event_id": "$" + _hash(random_)}}
    return {"type": "m.room.message", "content": content}


def _image(random_: random.Random) -> dict[str, Any]:
    info = {"h": random_.randrange(2000), "w": random_.randrange(2000), "mimetype": "image/jpeg"}
    info["size"] = random_.randrange(10**6)
    url = f"mxc://{random_.choice(_SERVERS)}/{_hash(random_)[:24]}"
    return {
        "type": "m.room.message",
        "content": {"msgtype": "m.image", "body": "image.png", "url": url, "info": info},
    }


def _encrypted(random_: random.Random) -> dict[str, Any]:
    content = {
        "algorithm": "m.megolm.v1.aes-sha2",
        "ciphertext": _hash(random_) * random_.randrange(4, 12),
        "device_id": "".join(random_.choices(string.ascii_uppercase, k=10)),
        "sender_key": _hash(random_),
        "session_id": _hash(random_),
    }
    return {"type": "m.room.encrypted", "content": content}


def _reaction(random_: random.Random) -> dict[str, Any]:
    relates_to = {"event_id": "$" + _hash(random_), "key": "👍", "rel_type": "m.annotation"}
    return {"type": "m.reaction", "content": {"m.relates_to": relates_to}}


def _power_levels(random_: random.Random) -> dict[str, Any]:
    content = {
        "ban": 50, "events": {"m.room.avatar": 50, "m.room.canonical_alias": 50, "m.room.encryption": 100,
        "m.room.history_visibility": 100, "m.room.name": 50, "m.room.power_levels": 100,
        "m.room.server_acl": 100, "m.room.tombstone": 150}, "events_default": 0, "invite": 0, "kick": 50,
        "redact": 50, "state_default": 50, "users": {_user(random_): 100}, "users_default": 0,
    }  # fmt: skip
    return {"type": "m.room.power_levels", "state_key": "", "content": content}


def _setting(random_: random.Random) -> dict[str, Any]:
    event_type, content = random_.choice(
        [
            ("m.room.create", {"room_version": "12", "additional_creators": [_user(random_)]}),
            ("m.room.join_rules", {"join_rule": random_.choice(["public", "invite", "restricted"])}),
            ("m.room.history_visibility", {"history_visibility": "shared"}),
            ("m.room.guest_access", {"guest_access": "can_join"}),
            ("m.room.name", {"name": _text(random_)}),
            ("m.room.topic", {"topic": _text(random_), "m.topic": {"m.text": [{"body": _text(random_)}]}}),
            ("m.room.canonical_alias", {"alias": f"#room:{random_.choice(_SERVERS)}", "alt_aliases": []}),
            ("m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"}),
        ]
    )
    return {"type": event_type, "state_key": "", "content": content}


def sample(random_: random.Random) -> bytes:
    """One made-up event in canonical JSON."""
    kinds = [_message, _image, _encrypted, _reaction, _member, _power_levels, _setting]
    event = random_.choices(kinds, weights=[50, 3, 15, 10, 15, 2, 5])[0](random_)
    sender = _user(random_)
    event |= {
        "auth_events": ["$" + _hash(random_) for _ in range(random_.randrange(1, 4))],
        "depth": random_.randrange(100_000),
        "hashes": {"sha256": _hash(random_)},
        "origin_server_ts": 1_700_000_000_000 + random_.randrange(10**11),
        "prev_events": ["$" + _hash(random_)],
        "room_id": "!" + _hash(random_),
        "sender": sender,
        "signatures": {},
    }
    if random_.random() < 0.3:
        event["signatures"] = {sender.partition(":")[2]: {"ed25519:a_AbCd": _hash(random_) * 2}}
    return orjson.dumps(event, option=orjson.OPT_SORT_KEYS)


def main(file: str) -> None:
    """Train on made-up events, always the same ones, and write the dictionary."""
    random_ = random.Random(1)  # noqa: S311 -- the dictionary is to come out the same each time
    samples: list[bytes | bytearray | memoryview] = [sample(random_) for _ in range(_SAMPLES)]
    Path(file).write_bytes(zstandard.train_dictionary(_SIZE_BYTES, samples).as_bytes())


if __name__ == "__main__":
    main(sys.argv[1])
