-- Numbers for the texts that rows would otherwise repeat. Rows are added in a small transaction of their own
-- before the rows that name them, and stay; bytea, because NUL is legal in state keys and event types.
CREATE TABLE atoms (                 -- user IDs and state keys
    nid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    s   bytea NOT NULL UNIQUE
);

CREATE TABLE event_types (
    nid  int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name bytea NOT NULL UNIQUE
);
INSERT INTO event_types (name) VALUES ('m.room.member');  -- 1: "all but members" is nid > 1
