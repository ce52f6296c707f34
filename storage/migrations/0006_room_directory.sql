-- Aliases of this server. Those of other servers are asked for each time, never stored.
CREATE TABLE room_aliases (
    room_alias  text PRIMARY KEY,
    room_nid    bigint NOT NULL REFERENCES rooms ON DELETE CASCADE,
    creator_nid bigint NOT NULL
);
CREATE INDEX room_aliases_room ON room_aliases (room_nid);

-- The rooms that the published room directory lists.
CREATE TABLE published_rooms (
    room_nid bigint PRIMARY KEY REFERENCES rooms ON DELETE CASCADE
);
