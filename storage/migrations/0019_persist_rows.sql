-- Each event out-of-band has the version that its sender claims the room to have.
ALTER TABLE oob_membership ADD COLUMN version text;
UPDATE oob_membership SET version = rooms.version FROM rooms WHERE rooms.nid = oob_membership.room_nid;
ALTER TABLE oob_membership ALTER COLUMN version SET NOT NULL;

-- Stores what a user of this server has become in a room that this server is not in: the event as an outlier, and
-- a row of oob_membership, which one position of the stream tells of (see `persist` for the lock).
--
-- Nothing changes, and NULL is returned, where this is known already, and where the user's newest member event is
-- not `expected` any more. With `expected` NULL whatever was before is replaced, but nothing where a user of this
-- server is in the room: there the room's own events tell. `stripped` NULL keeps what is known of the room.
-- Nothing has checked whether the room allows the event (flag UNCHECKED): auth stays NULL until somebody does.
-- The version of the room is a claim of who sent the event: it is kept with it, and changes no other one.
CREATE OR REPLACE FUNCTION store_out_of_band(
    new_room bigint, the_room_id text, the_version text, own_server bigint,
    the_user bigint, the_membership smallint, expected bigint, the_stripped bytea,
    new_event bigint, the_event_id bytea, the_type int, the_sender bigint, the_depth bigint, the_ts bigint,
    the_recv_ts bigint, the_flags int, the_json bytea
) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    room bigint;
    event bigint;
    newest bigint;
    is_another boolean;
    new_pos bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'store_out_of_band needs READ COMMITTED';
    END IF;
    PERFORM pg_advisory_xact_lock(7810776);  -- the stream lock
    PERFORM set_config('lock_timeout', '200ms', true);

    INSERT INTO rooms (nid, room_id, version) VALUES (new_room, the_room_id, the_version)
    ON CONFLICT (room_id) DO NOTHING;
    SELECT nid INTO STRICT room FROM rooms WHERE room_id = the_room_id;
    IF expected IS NULL AND (  -- 1: join, the lowest
        SELECT min(membership) FROM memberships WHERE room_nid = room AND server_nid = own_server) = 1 THEN
        RETURN NULL;
    END IF;

    SELECT known.event_nid INTO newest FROM (
        SELECT event_nid, pos FROM memberships WHERE user_nid = the_user AND room_nid = room
        UNION ALL
        SELECT event_nid, pos FROM oob_membership WHERE user_nid = the_user AND room_nid = room
    ) AS known ORDER BY known.pos DESC LIMIT 1;
    IF expected IS NOT NULL AND newest IS DISTINCT FROM expected THEN
        RETURN NULL;
    END IF;
    -- Where servers choose event IDs, another event may have the same one.
    SELECT nid, (room_nid, type_nid, skey_nid) IS DISTINCT FROM (room, the_type, the_user)
    INTO event, is_another FROM events WHERE event_id = the_event_id;
    IF is_another OR (event IS NOT NULL AND newest IS NOT NULL) THEN
        RETURN NULL;
    END IF;

    IF event IS NULL THEN
        event := new_event;
        INSERT INTO events (nid, room_nid, sub, depth, ts, recv_ts, type_nid, sender_nid, skey_nid, flags,
                            event_id, json)
        VALUES (event, room, 0, the_depth, the_ts, the_recv_ts, the_type, the_sender, the_user, the_flags,
                the_event_id, the_json);
    END IF;
    new_pos := nextval('pos_seq');
    INSERT INTO stream (pos, kind, room_nid, user_nid, ref) VALUES (new_pos, 6, room, the_user, event);
    INSERT INTO oob_membership AS known (user_nid, room_nid, membership, event_nid, pos, stripped, version)
    VALUES (the_user, room, the_membership, event, new_pos, coalesce(the_stripped, '[]'), the_version)
    ON CONFLICT (user_nid, room_nid) DO UPDATE
    SET membership = excluded.membership, event_nid = excluded.event_nid, pos = excluded.pos, forgotten = false,
        version = excluded.version, stripped = coalesce(the_stripped, known.stripped);
    RETURN new_pos;
END
$$;

-- The rows that a call of `persist` takes. One array of rows for each kind costs a batch of one event, which most
-- are, far less than an array for each column did.
CREATE TYPE persist_room AS (room bigint, expected bigint);
CREATE TYPE persist_new_room AS (
    room bigint, room_id text, version text, alias text, creator bigint, published boolean
);
CREATE TYPE persist_event AS (
    nid bigint, room bigint, seq bigint, depth bigint, ts bigint, type int, sender bigint, skey bigint,
    state_ver bigint, state_delta bigint, flags int, prev bigint[], auth bigint[], event_id bytea, json bytea
);
CREATE TYPE persist_delta AS (id bigint, room bigint, base bigint, parent bigint, hash bytea, entries bytea);
CREATE TYPE persist_state AS (room bigint, ver bigint, type int, skey bigint, event bigint);
CREATE TYPE persist_member AS (
    user_nid bigint, room bigint, server bigint, membership smallint, event bigint, index int
);
CREATE TYPE persist_server AS (room bigint, server bigint, seq bigint, index int);
CREATE TYPE persist_txn AS (device bigint, room bigint, what bytea, txn bytea, event bigint);
CREATE TYPE persist_extremity AS (room bigint, event bigint);
CREATE TYPE persist_redaction AS (room bigint, target bytea, event bigint, by_power boolean);
CREATE TYPE persist_missing AS (room bigint, event_id bytea, child bigint);
CREATE TYPE persist_filled AS (room bigint, event_id bytea);

-- Stores a batch: one call, one durable commit. Every room must still have the head that its events were built
-- on; a room that has moved, or whose transaction ID or event ID is taken, is left out whole and reported.
-- Positions are given under one lock, which is freed only after the commit is visible: so position order is the
-- order in which changes become visible. READ COMMITTED: each statement after the lock sees all earlier commits.
--
-- NULL stands for no rows. An `index` is the place of an event among `new_events`.
--   rooms: expected is NULL if they are new · new_events: without seq if they get no place in the timeline; prev
--   is NULL for "the live event before", auth for no state event · promoted: numbers of events that are stored
--   already and get their place now · from_outside: numbers of those that no user of this server sent just now ·
--   deltas: differences of states · states: changes of the current state · arrived, gone: servers whose first user
--   joined a room, whose last one may have left it · owed_extra: servers that are not in the room, but owed an event ·
--   reset: rooms whose forward extremities are `extremities` now · missing: events that are, filled: those that were
-- Returns (kind, a, b):  0: first and last position ·  1: room to rebuild, its highest room_seq (-1: purged)
--                        2: index of an event whose ID is stored already, or that no lease covers any more, its nid
--                        3: index of a transaction, its event
--                        4: index of a new room whose alias is taken ·  5: number of an event that is redacted now
DROP FUNCTION persist;
CREATE FUNCTION persist(
    recv_ts bigint,
    the_rooms persist_room[],
    new_rooms persist_new_room[],
    new_events persist_event[],
    promoted bigint[],
    from_outside bigint[],
    deltas persist_delta[],
    states persist_state[],
    members persist_member[],
    arrived persist_server[],
    gone persist_server[],
    owed_extra persist_server[],
    txns persist_txn[],
    reset bigint[],
    extremities persist_extremity[],
    redacting persist_redaction[],
    missing persist_missing[],
    filled persist_filled[]
) RETURNS TABLE (kind int, a bigint, b bigint)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    bad bigint[] := '{}';
    more bigint[];
    written int;
    positions bigint[];
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'persist needs READ COMMITTED';
    END IF;
    promoted := coalesce(promoted, '{}');
    PERFORM pg_advisory_xact_lock(7810776);  -- the stream lock
    PERFORM set_config('lock_timeout', '200ms', true);

    SELECT array_agg(r.room) INTO more FROM unnest(the_rooms) AS r
    WHERE nullif(r.expected, 0) IS DISTINCT FROM (
        SELECT e.room_seq FROM events e WHERE e.room_nid = r.room AND e.room_seq IS NOT NULL
        ORDER BY e.room_seq DESC LIMIT 1)
      OR (r.expected = 0 AND (SELECT nid FROM rooms WHERE nid = r.room) IS NULL);
    IF more IS NOT NULL THEN
        bad := more;
        RETURN QUERY
            SELECT 1, r.room, CASE WHEN rooms.nid IS NULL THEN -1 ELSE coalesce(
                (SELECT max(e.room_seq) FROM events e WHERE e.room_nid = r.room), 0) END
            FROM unnest(more) AS r(room) LEFT JOIN rooms ON rooms.nid = r.room;
    END IF;

    -- What a user of this server sends just now has an ID that nobody knows yet, and enters no room.
    IF cardinality(from_outside) > 0 THEN
        -- An event whose place was not known so far has its row; 48: SOFT_FAILED and REJECTED, which stay what they are.
        SELECT array_agg(e.room) INTO more FROM unnest(new_events) AS e
        JOIN events known ON known.event_id = e.event_id
        WHERE known.nid <> e.nid OR known.room_seq IS NOT NULL OR known.flags & 48 <> 0;
        IF more IS NOT NULL THEN
            bad := bad || more;
            RETURN QUERY
                SELECT 2, e.ordinality, known.nid FROM unnest(new_events) WITH ORDINALITY AS e
                JOIN events known ON known.event_id = e.event_id
                WHERE known.nid <> e.nid OR known.room_seq IS NOT NULL OR known.flags & 48 <> 0;
        END IF;

        -- Rooms that are entered, for the first time or again; then there is a marker (8: HIDDEN). Nobody takes a
        -- lease before this is committed.
        SELECT array_agg(r.room) INTO more FROM unnest(the_rooms) AS r
        WHERE r.room <> ALL (bad)
          AND EXISTS (
              SELECT FROM unnest(new_events) AS e WHERE e.room = r.room AND (r.expected = 0 OR e.flags & 8 <> 0))
          AND NOT coalesce((
              SELECT join_nid IN (SELECT nid FROM unnest(new_events)) FROM room_joins WHERE room_nid = r.room
              FOR SHARE), false);
        IF more IS NOT NULL THEN
            bad := bad || more;
            RETURN QUERY
                SELECT 2, e.ordinality, e.nid FROM unnest(new_events) WITH ORDINALITY AS e WHERE e.room = ANY (more);
        END IF;
    END IF;

    IF cardinality(new_rooms) > 0 THEN
        INSERT INTO rooms (nid, room_id, version)
        SELECT n.room, n.room_id, n.version FROM unnest(new_rooms) AS n WHERE n.room <> ALL (bad);
        WITH named AS (  -- what another session is adding at this moment is waited for
            INSERT INTO room_aliases (room_alias, room_nid, creator_nid)
            SELECT n.alias, n.room, n.creator FROM unnest(new_rooms) AS n
            WHERE n.room <> ALL (bad) AND n.alias IS NOT NULL
            ON CONFLICT (room_alias) DO NOTHING
            RETURNING room_nid
        )
        SELECT array_agg(n.room) INTO more FROM unnest(new_rooms) AS n
        WHERE n.room <> ALL (bad) AND n.alias IS NOT NULL AND n.room NOT IN (SELECT room_nid FROM named);
        IF more IS NOT NULL THEN
            DELETE FROM rooms WHERE nid = ANY (more);
            bad := bad || more;
            RETURN QUERY
                SELECT 4, n.ordinality, 0::bigint FROM unnest(new_rooms) WITH ORDINALITY AS n
                WHERE n.room = ANY (more);
        END IF;
        INSERT INTO published_rooms (room_nid)
        SELECT n.room FROM unnest(new_rooms) AS n WHERE n.room <> ALL (bad) AND n.published;
    END IF;

    IF cardinality(txns) > 0 THEN
        INSERT INTO txn_ids (device_nid, room_nid, what, txn, event_nid, ts)
        SELECT t.device, t.room, t.what, t.txn, t.event, recv_ts FROM unnest(txns) AS t WHERE t.room <> ALL (bad)
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS written = ROW_COUNT;
        IF written < cardinality(txns) THEN
            SELECT array_agg(t.room) INTO more FROM unnest(txns) AS t
            JOIN txn_ids o ON (o.room_nid, o.device_nid, o.what, o.txn) = (t.room, t.device, t.what, t.txn)
            WHERE o.event_nid <> t.event;
            IF more IS NOT NULL THEN
                bad := bad || more;
                RETURN QUERY
                    SELECT 3, t.ordinality, o.event_nid FROM unnest(txns) WITH ORDINALITY AS t
                    JOIN txn_ids o ON (o.room_nid, o.device_nid, o.what, o.txn) = (t.room, t.device, t.what, t.txn)
                    WHERE o.event_nid <> t.event;
                DELETE FROM txn_ids AS o USING unnest(txns) AS t
                WHERE (o.room_nid, o.device_nid, o.what, o.txn) = (t.room, t.device, t.what, t.txn)
                  AND o.event_nid = t.event AND t.room = ANY (more);
            END IF;
        END IF;
    END IF;

    INSERT INTO events (nid, room_nid, room_seq, sub, depth, ts, recv_ts, type_nid, sender_nid, skey_nid,
                        state_ver, state_delta, flags, prev, auth, event_id, json)
    SELECT e.nid, e.room, e.seq, 0, e.depth, e.ts, recv_ts, e.type, e.sender, e.skey,
           e.state_ver, e.state_delta, e.flags, e.prev, e.auth, e.event_id, e.json
    FROM unnest(new_events) AS e WHERE e.room <> ALL (bad) AND e.nid <> ALL (promoted);

    IF cardinality(promoted) > 0 THEN
        UPDATE events
        SET room_seq = e.seq, state_ver = e.state_ver, state_delta = e.state_delta, recv_ts = persist.recv_ts,
            flags = e.flags | (events.flags & 64), json = e.json, prev = e.prev, auth = e.auth
        FROM unnest(new_events) AS e
        WHERE events.nid = e.nid AND e.nid = ANY (promoted) AND e.room <> ALL (bad);
    END IF;

    IF cardinality(deltas) > 0 THEN
        INSERT INTO state_delta (id, room_nid, base_ver, parent, hash, entries)
        SELECT c.id, c.room, c.base, c.parent, c.hash, c.entries FROM unnest(deltas) AS c WHERE c.room <> ALL (bad)
        ON CONFLICT (hash) DO NOTHING;
        UPDATE events SET state_delta = stored.id
        FROM unnest(deltas) AS c JOIN state_delta AS stored ON stored.hash = c.hash
        WHERE events.nid IN (SELECT nid FROM unnest(new_events)) AND events.state_delta = c.id AND stored.id <> c.id;
    END IF;

    INSERT INTO stream (pos, kind, room_nid, room_seq, ref)
    SELECT nextval('pos_seq'), 1, e.room, e.seq, e.nid
    FROM unnest(new_events) AS e WHERE e.seq IS NOT NULL AND e.room <> ALL (bad);
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written > 0 THEN
        kind := 0;
        a := currval('pos_seq') - written + 1;
        b := currval('pos_seq');
        RETURN NEXT;
    END IF;

    IF cardinality(states) > 0 THEN
        INSERT INTO room_state_log (room_nid, ver, type_nid, skey_nid, event_nid)
        SELECT s.room, s.ver, s.type, s.skey, s.event FROM unnest(states) AS s WHERE s.room <> ALL (bad);
    END IF;

    -- The positions are counted: with no statistics, or old ones, they would be looked for in all of a room.
    IF cardinality(members) > 0 OR cardinality(gone) > 0 OR cardinality(owed_extra) > 0 THEN
        positions := ARRAY(
            SELECT a - 1 + count(*) FILTER (WHERE e.seq IS NOT NULL AND e.room <> ALL (bad)) OVER (ORDER BY e.ordinality)
            FROM unnest(new_events) WITH ORDINALITY AS e ORDER BY e.ordinality);
    END IF;
    IF cardinality(members) > 0 THEN
        INSERT INTO memberships (user_nid, room_nid, server_nid, membership, event_nid, pos)
        SELECT m.user_nid, m.room, m.server, m.membership, m.event, positions[m.index]
        FROM unnest(members) AS m WHERE m.room <> ALL (bad)
        ON CONFLICT (user_nid, room_nid) DO UPDATE
        SET membership = excluded.membership, event_nid = excluded.event_nid, pos = excluded.pos,
            forgotten = false;
        DELETE FROM oob_membership AS oob USING unnest(members) AS m
        WHERE oob.user_nid = m.user_nid AND oob.room_nid = m.room AND m.room <> ALL (bad);
    END IF;

    IF cardinality(arrived) > 0 THEN
        INSERT INTO room_servers (room_nid, server_nid, from_seq)
        SELECT j.room, j.server, j.seq FROM unnest(arrived) AS j
        WHERE j.room <> ALL (bad) AND (
            SELECT max(from_seq) FROM room_servers AS open
            WHERE open.room_nid = j.room AND open.server_nid = j.server AND open.to_seq IS NULL) IS NULL;
    END IF;
    IF cardinality(gone) > 0 THEN
        UPDATE room_servers AS open
        SET to_seq = l.seq, to_pos = positions[l.index]
        FROM unnest(gone) AS l
        WHERE open.room_nid = l.room AND open.server_nid = l.server AND open.to_seq IS NULL
          AND l.room <> ALL (bad) AND (  -- 1: join, the lowest
            SELECT min(membership) FROM memberships AS m
            WHERE m.room_nid = l.room AND m.server_nid = l.server) IS DISTINCT FROM 1;
    END IF;
    IF cardinality(owed_extra) > 0 THEN
        INSERT INTO fed_extra (server_nid, pos, room_nid, event_nid)
        SELECT f.server, positions[f.index], f.room, (new_events[f.index]).nid
        FROM unnest(owed_extra) AS f
        WHERE f.room <> ALL (bad) AND (
            SELECT max(from_seq) FROM room_servers AS owed
            WHERE owed.room_nid = f.room AND owed.server_nid = f.server
              AND owed.from_seq < f.seq AND coalesce(owed.to_seq >= f.seq, true)) IS NULL;
    END IF;

    IF cardinality(reset) > 0 THEN
        DELETE FROM room_ext WHERE room_nid = ANY (reset) AND room_nid <> ALL (bad);
        INSERT INTO room_ext (room_nid, event_nid)
        SELECT x.room, x.event FROM unnest(extremities) AS x WHERE x.room <> ALL (bad);
    END IF;

    IF cardinality(filled) > 0 THEN
        DELETE FROM missing_prev AS known USING unnest(filled) AS h
        WHERE known.room_nid = h.room AND known.event_id = h.event_id AND h.room <> ALL (bad);
    END IF;
    IF cardinality(missing) > 0 THEN
        INSERT INTO missing_prev (room_nid, event_id, child_nid)
        SELECT g.room, g.event_id, g.child FROM unnest(missing) AS g WHERE g.room <> ALL (bad)
        ON CONFLICT DO NOTHING;
    END IF;

    IF cardinality(redacting) > 0 THEN
        INSERT INTO redactions (room_nid, target, by_nid, by_power)
        SELECT d.room, d.target, d.event, d.by_power FROM unnest(redacting) AS d WHERE d.room <> ALL (bad);
    END IF;
    IF cardinality(redacting) > 0 OR cardinality(from_outside) > 0 THEN
        IF cardinality(redacting) > 0 OR EXISTS (
            SELECT FROM unnest(new_events) AS e JOIN redactions AS r ON r.room_nid = e.room AND r.target = e.event_id
            WHERE e.nid = ANY (from_outside)) THEN
            RETURN QUERY SELECT 5, d.target, d.by_nid FROM apply_redactions(  -- see 0017
                from_outside,
                ARRAY(SELECT d.room FROM unnest(redacting) AS d), ARRAY(SELECT d.target FROM unnest(redacting) AS d),
                ARRAY(SELECT d.event FROM unnest(redacting) AS d)) AS d;
        END IF;
    END IF;
END
$$;
