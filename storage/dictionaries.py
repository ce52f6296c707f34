"""Tables atoms and event_types: numbers for user IDs, state keys and event types, remembered in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from storage.database import Database

MEMBER_TYPE_NID: Final = 1
"""The number of m.room.member, the lowest: "all state but members" is a range."""

CACHE_SIZE: Final = 200_000
ADDED_AT_ONCE: Final = 500
"""In one transaction: others may want to add the same texts, and have to wait for it."""


class Dictionary:
    """One table of (nid, text): rows are only ever added, so what is remembered stays true."""

    def __init__(self, database: Database, table: str, column: str) -> None:
        self._database = database
        self._insert = f"""
            INSERT INTO {table} ({column}) SELECT unnest($1::bytea[]) ON CONFLICT DO NOTHING
        """
        self._select = f"SELECT {column} AS text, nid FROM {table} WHERE {column} = ANY($1::bytea[])"  # noqa: S608
        self._select_texts = f"SELECT {column} AS text, nid FROM {table} WHERE nid = ANY($1::bigint[])"  # noqa: S608
        self._nids: OrderedDict[str, int] = OrderedDict()
        self._texts: OrderedDict[int, str] = OrderedDict()

    def known_nid(self, text: str) -> int | None:
        """The number of a text if it is in memory."""
        return self._nids.get(text)

    def known_text(self, nid: int) -> str | None:
        """The text of a number if it is in memory."""
        return self._texts.get(nid)

    async def nid(self, text: str) -> int:
        """The number of a text, which gets one if it has none."""
        nid = self._nids.get(text)
        return nid if nid is not None else (await self.nids([text]))[text]

    async def nids(self, texts: Iterable[str]) -> dict[str, int]:
        """The numbers of texts; those that have none get one, in transactions of their own."""
        found = await self.find_nids(texts)
        missing = sorted({text for text in texts if text not in found})
        for start in range(0, len(missing), ADDED_AT_ONCE):
            chunk = missing[start : start + ADDED_AT_ONCE]
            async with self._database.connection() as tx:
                await tx.execute(self._insert, [text.encode() for text in chunk])
        if missing:
            found |= await self.find_nids(missing)
        return found

    async def find_nid(self, text: str) -> int | None:
        """The number of a text; None when nothing here names it."""
        nid = self._nids.get(text)
        return nid if nid is not None else (await self.find_nids([text])).get(text)

    async def find_nids(self, texts: Iterable[str]) -> dict[str, int]:
        """The numbers of those texts that have one."""
        found, missing = {}, []
        for text in texts:
            nid = self._nids.get(text)
            if nid is None:
                missing.append(text.encode())
            else:
                found[text] = nid
        if missing:
            async with self._database.connection() as tx:
                rows = await tx.fetch(self._select, missing)
            for row in rows:
                text = row["text"].decode()
                found[text] = row["nid"]
                self._remember(text, row["nid"])
        return found

    async def texts(self, nids: Iterable[int]) -> dict[int, str]:
        """The texts of numbers that exist."""
        found, missing = {}, []
        for nid in nids:
            text = self._texts.get(nid)
            if text is None:
                missing.append(nid)
            else:
                found[nid] = text
        if missing:
            async with self._database.connection() as tx:
                rows = await tx.fetch(self._select_texts, missing)
            for row in rows:
                found[row["nid"]] = text = row["text"].decode()
                self._remember(text, row["nid"])
        return found

    def _remember(self, text: str, nid: int) -> None:
        self._nids[text] = nid
        self._texts[nid] = text
        if len(self._nids) > CACHE_SIZE:
            old_text, old_nid = self._nids.popitem(last=False)
            self._texts.pop(old_nid, None)
            del old_text


class Dictionaries:
    """The dictionaries of one database."""

    def __init__(self, database: Database) -> None:
        self.atoms = Dictionary(database, "atoms", "s")
        self.event_types = Dictionary(database, "event_types", "name")
