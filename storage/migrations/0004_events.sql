-- Rooms and their events. Numbers (nid) come in blocks that each process takes from nid_blocks.
CREATE SEQUENCE nid_blocks CACHE 1;  -- block b holds the numbers from 1000 b to 1000 b + 999

CREATE TABLE rooms (
    nid           bigint PRIMARY KEY,          -- never used again, also when the room is purged and joined anew
    room_id       text NOT NULL UNIQUE,
    version       text NOT NULL,
    flags         int NOT NULL DEFAULT 0,
    history_floor bigint NOT NULL DEFAULT 0    -- nothing at or below this room_seq is kept
);

CREATE TABLE events (
    nid         bigint PRIMARY KEY,
    room_nid    bigint NOT NULL,
    room_seq    bigint,            -- 1, 2, 3, ... in order of arrival; NULL: outlier, rejected or soft-failed
    sub         int NOT NULL,      -- 0: live; -1, -2, ...: older history fetched later, directly before room_seq
    depth       bigint NOT NULL,
    ts          bigint NOT NULL,   -- origin_server_ts
    recv_ts     bigint NOT NULL,
    type_nid    int NOT NULL,
    sender_nid  bigint NOT NULL,
    skey_nid    bigint,            -- NULL: no state event
    state_ver   bigint,            -- state before the event: NULL = trunk(room_seq - 1); else trunk(state_ver) and
    state_delta bigint,            --   the differences in this row of state_delta
    flags       int NOT NULL,      -- see storage/event_flags.py
    prev        bigint[],          -- NULL: exactly the live event at room_seq - 1
    auth        bigint[],          -- of state events only
    event_id    bytea NOT NULL,    -- the 32 bytes of the hash
    json        bytea NOT NULL     -- the event in canonical JSON, in the codec that flags name
);
ALTER TABLE events ALTER COLUMN json SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX events_event_id ON events (event_id);
CREATE UNIQUE INDEX events_timeline ON events (room_nid, room_seq, sub);

-- The forward extremities of a room. No rows: the only one is the event of the highest room_seq.
CREATE TABLE room_ext (
    room_nid  bigint NOT NULL,
    event_nid bigint NOT NULL,
    PRIMARY KEY (room_nid, event_nid)
);

-- The event that a transaction ID made; swept after a day. what: endpoint and event type.
CREATE TABLE txn_ids (
    device_nid bigint NOT NULL,
    room_nid   bigint NOT NULL,
    what       bytea NOT NULL,
    txn        bytea NOT NULL,
    event_nid  bigint NOT NULL,
    ts         bigint NOT NULL,
    PRIMARY KEY (room_nid, device_nid, what, txn)
);
CREATE INDEX txn_ids_ts ON txn_ids USING brin (ts);

-- Redactions that were sent to a room, by the ID of the event they name, which may be unknown here.
CREATE TABLE redactions (
    room_nid bigint NOT NULL,
    target   bytea NOT NULL,
    by_nid   bigint NOT NULL,
    PRIMARY KEY (room_nid, target, by_nid)
);
