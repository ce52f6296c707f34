"""What stands beside a timeline: the state before or after it, and the members who speak in it.

Source: Client-Server API, "Syncing" (`state`, `state_after`), "Lazy-loading room members".
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from homeserver.protocol.identifiers import UserId

K = TypeVar("K", bound=Hashable)
E = TypeVar("E")


class StateChange(NamedTuple, Generic[K, E]):
    """A key of a room's state became an event at a room_seq."""

    key: K
    seq: int
    event: E


class TimelineEvent(Protocol):
    """What is asked of an event here."""

    @property
    def type(self) -> str:
        """The event's type."""

    @property
    def state_key(self) -> str | None:
        """Its state key; None for a message event."""

    @property
    def sender(self) -> UserId:
        """Who sent it."""


def state_of_changes(
    changes: Iterable[StateChange[K, E]], first: int, carried: Collection[K], *, after: bool
) -> list[E]:
    """The state that clients need beside a timeline that begins at room_seq `first`, in order.

    `changes`: what changed since they last asked, ascending; `carried`: the keys of which the timeline holds
    events. The state before the timeline is that of `first`, but a key that changed later, in an event that
    is not shown, comes as it is at the end. `after`: the state at the timeline's end.
    """
    before: dict[K, StateChange[K, E]] = {}
    within: dict[K, StateChange[K, E]] = {}
    for change in changes:
        (before if change.seq < first else within)[change.key] = change
    later = within if after else {key: change for key, change in within.items() if key not in carried}
    return [change.event for change in sorted({**before, **later}.values(), key=lambda change: change.seq)]


def speakers_of(
    timeline: Sequence[TimelineEvent], in_state: Collection[str], before: int, end: int, *, after: bool
) -> dict[str, int]:
    """The senders whose member events clients need beside a timeline, each with the version of the state.

    `in_state`: the users whose member events stand in the state anyway. `before`, `end`: the versions before
    and after the timeline. `after`: whether clients take members from the state alone; otherwise they also
    know those whose member event comes in the timeline before they say something else.
    """
    known = set(in_state)
    needed: list[str] = []
    carried: set[str] = set()
    for event in timeline:
        if event.type == "m.room.member" and event.state_key is not None and not after:
            known.add(event.state_key)
            carried.add(event.state_key)
        if event.sender not in known:
            known.add(event.sender)
            needed.append(event.sender)
    return {user_id: before if user_id in carried else end for user_id in needed}
