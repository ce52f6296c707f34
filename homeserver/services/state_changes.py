"""State that a local user cannot set, whatever the authorization rules say.

Source: Client-Server API, "PUT /rooms/{roomId}/state/{eventType}/{stateKey}", "m.room.server_acl".
"""

from __future__ import annotations

from homeserver.errors import BadRequest
from homeserver.protocol.events import EventDraft
from homeserver.protocol.identifiers import UserId, server_name_of
from homeserver.protocol.server_acl import ServerAcl


def check_settable(draft: EventDraft, sender: UserId) -> None:
    """Refuse what no room's state can be set to by a client. Raises BadRequest."""
    if draft.type == "m.room.create":
        raise BadRequest("a room has one m.room.create event, from its creation")
    if draft.type == "m.room.redaction":
        raise BadRequest("a redaction is no state event: send it as a message")
    if (draft.type, draft.state_key) == ("m.room.server_acl", ""):
        server_name = server_name_of(sender)
        if not ServerAcl.of(draft.content).allows(server_name):
            raise BadRequest(f"this ACL would shut out {server_name}, and you with it")
