-- The trunk: what each change of a room's current state was. trunk(s) = for each key the row with the greatest
-- ver <= s. ver is the room_seq whose storing changed it.
CREATE TABLE room_state_log (
    room_nid  bigint NOT NULL,
    ver       bigint NOT NULL,
    type_nid  int NOT NULL,
    skey_nid  bigint NOT NULL,
    event_nid bigint NOT NULL   -- 0: removed
);
CREATE UNIQUE INDEX room_state_log_key ON room_state_log (room_nid, type_nid, skey_nid, ver DESC) INCLUDE (event_nid);
CREATE INDEX room_state_log_ver ON room_state_log (room_nid, ver);

-- The whole trunk at a version, packed: (type_nid u32, skey_nid u64, event_nid u64), n times, little-endian, zstd.
CREATE TABLE state_snap (
    room_nid bigint NOT NULL,
    ver      bigint NOT NULL,
    n        int NOT NULL,
    entries  bytea NOT NULL,
    PRIMARY KEY (room_nid, ver)
);

-- Differences to trunk(base_ver), for events on a fork and for fetched history; packed as above, event_nid 0 = removed.
CREATE TABLE state_delta (
    id       bigint PRIMARY KEY,
    room_nid bigint NOT NULL,
    base_ver bigint NOT NULL,
    parent   bigint,            -- at most one other row that lies below this one
    hash     bytea NOT NULL UNIQUE,  -- of room, base_ver, parent and entries: equal differences are stored once
    entries  bytea NOT NULL
);
CREATE INDEX state_delta_room ON state_delta (room_nid);

-- Who is what in which room: follows the trunk's m.room.member entries.
CREATE TABLE memberships (
    user_nid   bigint NOT NULL,
    room_nid   bigint NOT NULL,
    membership smallint NOT NULL,   -- 1 join, 2 invite, 3 knock, 4 leave, 5 ban
    event_nid  bigint NOT NULL,
    pos        bigint NOT NULL,     -- the stream position of that change
    forgotten  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (user_nid, room_nid)
);
CREATE INDEX memberships_room ON memberships (room_nid, membership) INCLUDE (user_nid);
