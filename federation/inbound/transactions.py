"""Server-Server API, section "Transactions"."""

from __future__ import annotations

from typing import Final

from federation.inbound.authentication import Origin, SignedContent
from federation.inbound.endpoints import federation_endpoints
from homeserver.http.models import Path, RawReply
from homeserver.services import Services

endpoints = federation_endpoints()

MAX_TRANSACTION_BYTES: Final = 32 * 1024 * 1024
"""50 events of 64 KiB in canonical JSON, which somebody may write with escapes, and 100 EDUs."""


class TransactionPath(Path):
    """A transaction, by the ID that its sender gave it."""

    txn_id: str


@endpoints.put(
    "/_matrix/federation/v1/send/{txnId}",
    max_body_bytes=MAX_TRANSACTION_BYTES,
    aliases=("/_matrix/federation/v1/send/{txnId}/",),
)
async def send_transaction(
    services: Services, origin: Origin, path: TransactionPath, content: SignedContent
) -> RawReply:
    """Take events and other data that a server pushes to us."""
    answer = await services.received_transactions.receive(origin.server_name, path.txn_id, content)
    return RawReply(answer)
