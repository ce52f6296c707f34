-- One row for each change that anyone may see, in the one order in which all see it.
CREATE SEQUENCE pos_seq CACHE 1;
CREATE TABLE stream (
    pos      bigint PRIMARY KEY,
    kind     smallint NOT NULL,  -- 1: event
    room_nid bigint,
    room_seq bigint,
    user_nid bigint,
    ref      bigint NOT NULL     -- events: nid
);
CREATE UNIQUE INDEX stream_events ON stream (room_nid, room_seq) WHERE kind = 1;
CREATE INDEX stream_room ON stream (room_nid, pos) INCLUDE (room_seq) WHERE kind = 1;
CREATE INDEX stream_user ON stream (user_nid, pos) WHERE user_nid IS NOT NULL;
