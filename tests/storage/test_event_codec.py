"""The stored form of events."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import orjson

from storage.event_codec import CODEC, decode_event, encode_event

EVENTS = [
    {"type": "m.room.message", "content": {"body": f"message {number} " + "abc"[number % 3] * number}}
    for number in range(2000)
]


def test_events_are_decoded_in_several_threads_at_once() -> None:
    stored = [encode_event(orjson.dumps(event)) for event in EVENTS]

    def decode(_: int) -> bool:
        return [decode_event(CODEC, event) for event in stored] == EVENTS

    with ThreadPoolExecutor(max_workers=4) as threads:
        assert all(threads.map(decode, range(8)))
