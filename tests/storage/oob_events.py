"""Member events of users in rooms that no server of the tests is in."""

from __future__ import annotations

from uuid import uuid4

from homeserver.protocol.events import EventDraft, Pdu, build_pdu
from homeserver.protocol.identifiers import EventId, RoomId, UserId
from homeserver.protocol.room_versions import ROOM_VERSIONS
from storage.memberships import Membership
from storage.oob_memberships import OutOfBandEvent, OutOfBandStore
from tests.storage.stores import SERVER, Store

V11 = ROOM_VERSIONS["11"]
TEA = UserId("@tea:tea.test")


def member_event(room_id: RoomId, user_id: UserId, membership: str, sender: UserId = TEA) -> Pdu:
    """Like no other."""
    return build_pdu(
        V11,
        room_id=room_id,
        draft=EventDraft("m.room.member", {"membership": membership, "x": uuid4().hex}, user_id),
        sender=sender,
        prev_events=[EventId("$a")],
        auth_events=[EventId("$b")],
        depth=3,
        origin_server_ts=1,
    )


def new_room_id() -> RoomId:
    return RoomId(f"!{uuid4().hex}:tea.test")


def oob_store(store: Store) -> OutOfBandStore:
    return OutOfBandStore(store.database, store.dictionaries, SERVER)


async def save(store: Store, pdu: Pdu, expected: int | None = None) -> bool:
    membership = Membership.of(pdu.membership)
    stripped = b"[]" if membership is Membership.INVITE else None
    event = OutOfBandEvent(V11, pdu, membership, expected=expected, stripped=stripped)
    return await oob_store(store).store(event, 1)
