"""NewEvents: makes of what a decision adds the events that a batch stores, with the numbers of their rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from homeserver.protocol.auth_events import CREATE, POWER_LEVELS, auth_state_keys
from homeserver.protocol.canonical_json import canonical_event
from homeserver.protocol.events import Pdu, StateKey
from homeserver.protocol.identifiers import server_in
from homeserver.protocol.power_levels import redacts_others
from storage.dictionaries import Dictionaries, Dictionary
from storage.event_batch import NewEvent, StateChange, is_for_servers_only
from storage.event_codec import CODEC
from storage.event_flags import EventFlag
from storage.nids import NidBlocks
from storage.placement import Placed
from storage.room_heads import RoomHead, StoredEvent
from storage.state_deltas import row_of

LOCAL_FLAGS: Final = EventFlag.FED | EventFlag.UNSIGNED
"""An event of a local user: other servers are owed it, and it is signed later."""


class UnknownTexts(Exception):
    """Events name texts whose numbers are not in memory: load them and ask again."""

    def __init__(self, additions: Iterable[Pdu | Placed]) -> None:
        super().__init__("the numbers of some texts are not in memory")
        self.atoms: set[str] = set()
        self.types: set[str] = set()
        for addition in additions:
            pdu, changes = (
                (addition.pdu, addition.changes or {}) if isinstance(addition, Placed) else (addition, {})
            )
            self.atoms.add(pdu.sender)
            self.types.add(pdu.type)
            keys = [*changes] if pdu.state_key is None else [pdu.key, *changes]
            for event_type, state_key in keys:
                self.types.add(event_type)
                self.atoms.add(state_key)
                if event_type == "m.room.member":
                    self.atoms.add(server_in(state_key))


class NewEvents:
    """What makes new events: the numbers that this process has in memory, and those that it may give out."""

    def __init__(self, dictionaries: Dictionaries, nids: NidBlocks) -> None:
        self._dictionaries = dictionaries
        self._nids = nids

    def put(self, head: RoomHead, additions: Sequence[Pdu | Placed]) -> list[NewEvent]:
        """Put what a decision adds into a head, less what is there already. Raises Needs and UnknownTexts."""
        events = []
        try:
            for addition in additions:
                if isinstance(addition, Placed):
                    events.append(self._placed(head, addition))
                elif not head.has(addition):
                    events.append(self._on_top(head, addition))
        except _NotInMemory:
            raise UnknownTexts(additions) from None
        return events

    def _on_top(self, head: RoomHead, pdu: Pdu) -> NewEvent:
        """Put an event of a local user on top of a head. Raises _NotInMemory."""
        type_nid, sender_nid, skey_nid = self._numbers(pdu)
        nid = self._nids.take()
        auth_nids, replaces, rescinds_for = None, None, None
        changes: tuple[StateChange, ...] = ()
        if pdu.state_key is not None:
            replaces = head.stored(pdu.key)
            keys = auth_state_keys(head.version, pdu.type, pdu.sender, pdu.state_key, pdu.content)
            named = [stored for key in keys if (stored := head.stored(key)) is not None]
            auth_nids = tuple(stored.nid for stored in named if stored.pdu.event_id in pdu.auth_events)
            change = self._change(pdu.key, StoredEvent(nid, pdu), replaces)
            changes = (change,)
            if _rescinds(pdu, replaces):
                rescinds_for = change.server_nid
        by_power = pdu.redacts is not None and redacts_others(
            head.version, pdu, head.events([CREATE, POWER_LEVELS])
        )
        prev_nids = head.prev_nids
        head.add(pdu, nid)
        return NewEvent(
            nid=nid,
            seq=head.seq,
            pdu=pdu,
            canonical=canonical_event(head.version, pdu.json),
            type_nid=type_nid,
            sender_nid=sender_nid,
            skey_nid=skey_nid,
            auth_nids=auth_nids,
            changes=changes,
            replaces=replaces,
            flags=LOCAL_FLAGS | _flags_of(pdu, is_sole=head.extremities[-1].is_sole),
            prev_nids=prev_nids,
            redacts_others=by_power,
            rescinds_for=rescinds_for,
        )

    def _placed(self, head: RoomHead, placed: Placed) -> NewEvent:
        """Put an event with a place of its own into a head. Raises _NotInMemory."""
        pdu = placed.pdu
        type_nid, sender_nid, skey_nid = self._numbers(pdu)
        replaces = None if pdu.state_key is None or not placed.is_live else head.stored(pdu.key)
        changes = tuple(
            self._change(key, stored, head.stored(key), keeps_out=key in placed.keeps_out)
            for key, stored in placed.state_changes.items()
        )
        placed.put_into(head)
        is_extremity = placed.is_live and placed.is_extremity
        flags = placed.flags | _flags_of(pdu, is_sole=is_extremity and head.extremities[-1].is_sole)
        if placed.is_live and not placed.changes_by_itself:
            flags |= EventFlag.RESOLVED
        delta, state_ver, state_delta = None, None, None
        if (state := placed.state) is not None:
            delta = row_of(state, self._nids.take(), head.room.nid)
            state_ver, state_delta = state.ver, state.over_id if delta is None else delta.id
        return NewEvent(
            nid=placed.nid,
            seq=head.seq if placed.is_live else None,
            pdu=pdu,
            canonical=canonical_event(head.version, pdu.json),
            type_nid=type_nid,
            sender_nid=sender_nid,
            skey_nid=skey_nid,
            auth_nids=placed.auth_nids if pdu.state_key is not None else None,
            changes=changes,
            replaces=replaces,
            flags=flags,
            prev_nids=placed.prev_nids,
            state_ver=state_ver,
            state_delta=state_delta,
            delta=delta,
            is_promoted=placed.is_promoted,
            is_own=False,
            missing=placed.missing,
            fills_gap=placed.fills_gap,
            redacts_others=placed.redacts_others,
        )

    def _numbers(self, pdu: Pdu) -> tuple[int, int, int | None]:
        """The numbers of an event's type, sender and state key. Raises _NotInMemory."""
        atoms = self._dictionaries.atoms
        skey_nid = None if pdu.state_key is None else _known(atoms, pdu.state_key)
        return _known(self._dictionaries.event_types, pdu.type), _known(atoms, pdu.sender), skey_nid

    def _change(
        self,
        key: StateKey,
        now: StoredEvent | None,
        before: StoredEvent | None,
        *,
        keeps_out: bool = False,
    ) -> StateChange:
        """A change of the state with its numbers. Raises _NotInMemory."""
        event_type, state_key = key
        atoms = self._dictionaries.atoms
        numbers = (_known(self._dictionaries.event_types, event_type), _known(atoms, state_key))
        server_nid = 0
        if event_type == "m.room.member":
            server_nid = _known(atoms, server_in(state_key))
        return StateChange(numbers, key, now, before, server_nid, keeps_out)


class _NotInMemory(Exception):
    """A text has no number that is in memory."""


def _known(dictionary: Dictionary, text: str) -> int:
    nid = dictionary.known_nid(text)
    if nid is None:
        raise _NotInMemory(f"{text} has no number that is in memory")
    return nid


def _flags_of(pdu: Pdu, *, is_sole: bool) -> int:
    """The flags that an event has by itself, and by being the only forward extremity."""
    flags = CODEC | EventFlag.SOLE if is_sole else CODEC
    return flags | EventFlag.SERVERS_ONLY if is_for_servers_only(pdu) else flags


def _rescinds(pdu: Pdu, replaces: StoredEvent | None) -> bool:
    """Whether an event takes back the invite, or refuses the knock, of a user of another server."""
    return (
        pdu.type == "m.room.member"
        and pdu.membership in ("leave", "ban")
        and replaces is not None
        and replaces.pdu.membership in ("invite", "knock")
        and server_in(pdu.state_key or "") != server_in(pdu.sender)
    )
