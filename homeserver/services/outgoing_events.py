"""Events as other servers get them: events of ours are signed here, when they first leave this server.

Ed25519 gives the same signature each time, so nothing of it has to be stored.
Source: Server-Server API, "Signing Events".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from homeserver.protocol.canonical_json import canonical_event
from homeserver.protocol.events import Pdu
from homeserver.protocol.identifiers import EventId
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.signing import sign_event
from homeserver.protocol.strict_json import JsonObject
from homeserver.services.bounded_cache import BoundedCache
from homeserver.services.own_keys import OwnKeys

REMEMBERED_SIGNATURES: Final = 20_000


@dataclass(frozen=True)
class OutgoingEvents:
    """Signs events of this server; the signatures of those that left it lately are remembered."""

    own: OwnKeys
    _signatures: BoundedCache[EventId, dict[str, Any]] = field(
        default_factory=lambda: BoundedCache(REMEMBERED_SIGNATURES), init=False, repr=False
    )

    def signed(self, version: RoomVersion, pdu: Pdu, *, is_unsigned: bool) -> JsonObject:
        """An event in the form that servers exchange. `is_unsigned`: it is ours and stored without signature.

        A redacted event has the signature of the whole one.
        """
        if not is_unsigned:
            return pdu.json
        signatures = self._signatures.get(pdu.event_id)
        if signatures is None:
            signed = sign_event(version, pdu.json, self.own.server_name, self.own.current)
            signatures = signed["signatures"]
            self._signatures.put(pdu.event_id, signatures, 1)
        return {**pdu.json, "signatures": signatures}

    def signed_bytes(self, version: RoomVersion, pdu: Pdu, *, is_unsigned: bool) -> bytes:
        """The same as canonical JSON."""
        return canonical_event(version, self.signed(version, pdu, is_unsigned=is_unsigned))
