-- Rooms that are shared with other servers: who is owed what, and what came from outside. Times are ms since 1970.
ALTER TABLE memberships ADD COLUMN server_nid bigint;   -- the user's server: atoms hold server names too
INSERT INTO atoms (s)
SELECT DISTINCT convert_to(substring(convert_from(atoms.s, 'UTF8') FROM ':(.*)'), 'UTF8')
FROM memberships JOIN atoms ON atoms.nid = memberships.user_nid
ON CONFLICT DO NOTHING;
UPDATE memberships SET server_nid = server.nid
FROM atoms, atoms AS server
WHERE atoms.nid = memberships.user_nid
  AND server.s = convert_to(substring(convert_from(atoms.s, 'UTF8') FROM ':(.*)'), 'UTF8');
ALTER TABLE memberships ALTER COLUMN server_nid SET NOT NULL;
CREATE INDEX memberships_servers ON memberships (room_nid, server_nid, membership);

-- When a server, ours too, had joined users in a room: from the event at from_seq, which brought the first one, to
-- the one at to_seq, which took the last; NULL while it is in the room. The event at s is owed to a server if
-- from_seq < s <= to_seq: the state before an event decides.
CREATE TABLE room_servers (
    room_nid   bigint NOT NULL,
    server_nid bigint NOT NULL,
    from_seq   bigint NOT NULL,
    to_seq     bigint,
    from_pos   bigint NOT NULL,   -- the same in positions of the stream
    to_pos     bigint,
    PRIMARY KEY (room_nid, server_nid, from_seq)
);
CREATE UNIQUE INDEX room_servers_open ON room_servers (room_nid, server_nid) WHERE to_seq IS NULL;
CREATE INDEX room_servers_server ON room_servers (server_nid);
INSERT INTO room_servers (room_nid, server_nid, from_seq, from_pos)
SELECT DISTINCT room_nid, server_nid, 0, 0 FROM memberships WHERE membership = 1;

-- Up to which position each server has got what it is owed. Written now and then: sending again does no harm.
CREATE TABLE sent_positions (
    server_nid bigint PRIMARY KEY,   -- 0: all servers without a row of their own
    pos        bigint NOT NULL
);

-- Events that a server is owed although it is not in their room: an invite of its user that was withdrawn.
CREATE TABLE fed_extra (
    server_nid bigint NOT NULL,
    pos        bigint NOT NULL,
    room_nid   bigint NOT NULL,
    event_nid  bigint NOT NULL,
    PRIMARY KEY (server_nid, pos)
);
CREATE INDEX fed_extra_room ON fed_extra (room_nid);

-- Invites to rooms that this server is not in, and what became of them: the event is an outlier. A row goes when
-- the room's own state says what the user is. In stream these changes have kind 6, user_nid and room_nid.
CREATE TABLE oob_membership (
    user_nid   bigint NOT NULL,
    room_nid   bigint NOT NULL REFERENCES rooms ON DELETE CASCADE,
    membership smallint NOT NULL,   -- as in memberships
    event_nid  bigint NOT NULL,
    pos        bigint NOT NULL,
    stripped   bytea NOT NULL,      -- JSON: a list of stripped state events
    forgotten  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (user_nid, room_nid)
);
CREATE INDEX oob_membership_room ON oob_membership (room_nid);

-- Events that stored events have among their prev_events, and that are not here.
CREATE TABLE missing_prev (
    room_nid bigint NOT NULL,
    event_id bytea NOT NULL,
    child_nid bigint NOT NULL,
    PRIMARY KEY (room_nid, event_id, child_nid)
);

-- Verified events that wait for their turn: for missing ones before them, or for the join to their room.
CREATE TABLE waiting_pdus (
    room_nid bigint NOT NULL REFERENCES rooms ON DELETE CASCADE,
    event_id bytea NOT NULL,
    number   bigint GENERATED ALWAYS AS IDENTITY,   -- the order of arrival
    origin   text NOT NULL,
    recv_ts  bigint NOT NULL,
    json     bytea NOT NULL,
    PRIMARY KEY (room_nid, event_id)
);

-- Answers to transactions of other servers, which are given again when one is repeated; swept after a day.
CREATE TABLE received_transactions (
    origin   text NOT NULL,
    txn_id   text NOT NULL,
    recv_ts  bigint NOT NULL,
    response bytea NOT NULL,
    PRIMARY KEY (origin, txn_id)
);
CREATE INDEX received_transactions_ts ON received_transactions USING brin (recv_ts);

-- Rooms that this server is joining just now, each under a lease; what is needed to go on after a crash.
CREATE TABLE room_joins (
    room_nid     bigint PRIMARY KEY REFERENCES rooms ON DELETE CASCADE,
    leased_until bigint NOT NULL,
    user_id      text NOT NULL,
    content      bytea NOT NULL,    -- JSON: what the member event says beside the membership
    servers      text[] NOT NULL,   -- whom to ask, the best first
    attempts     int NOT NULL DEFAULT 0
);

-- Whether the sender of a redaction may redact the events of others; otherwise those of its own server's users.
ALTER TABLE redactions ADD COLUMN by_power boolean NOT NULL DEFAULT true;

-- The auth graph of a room: all its state events.
CREATE INDEX events_state ON events (room_nid) WHERE skey_nid IS NOT NULL;
