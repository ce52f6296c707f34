-- A lease has a number that no other one has. Whoever has lost it changes nothing of the room any more: `persist` checks
-- it too, when our join is published, be it the first one or one that brings this server back.
CREATE SEQUENCE room_join_leases;
ALTER TABLE room_joins
    ADD COLUMN number bigint NOT NULL DEFAULT nextval('room_join_leases'),
    ADD COLUMN join_nid bigint;   -- the event that may be published under the lease

-- What is looked up in rooms of any size is found by an index, also while PostgreSQL has no statistics of a table,
-- or those of a time when it was small: it might search all of it for a row that EXISTS, once for each room.

-- What a server is owed, and where history is missing: see EventFlag.FED and GAP.
CREATE INDEX events_fed ON events (room_nid, room_seq) WHERE flags & 4 <> 0;
CREATE INDEX events_gap ON events (room_nid, room_seq) WHERE flags & 2 <> 0;
CREATE INDEX missing_prev_child ON missing_prev (child_nid);
CREATE INDEX waiting_pdus_order ON waiting_pdus (room_nid, origin, number);

DROP INDEX stream_user;
-- Whoever sends an event first must not keep it from others who know what it builds on.
ALTER TABLE waiting_pdus
    DROP COLUMN recv_ts,
    ADD COLUMN by_stranger boolean NOT NULL DEFAULT false,  -- its origin was not in the room
    DROP CONSTRAINT waiting_pdus_pkey,
    ADD PRIMARY KEY (room_nid, event_id, origin);
ALTER TABLE room_servers DROP COLUMN from_pos;

-- From now on a row goes when its event gets a place.
DELETE FROM missing_prev USING events
WHERE events.event_id = missing_prev.event_id AND events.room_nid = missing_prev.room_nid
  AND (events.room_seq IS NOT NULL OR events.state_ver IS NOT NULL);

-- Stores what a user of this server has become in a room that this server is not in: the event as an outlier, and
-- a row of oob_membership, which one position of the stream tells of (see `persist` for the lock).
--
-- Nothing changes, and NULL is returned, where this is known already, and where the user's newest member event is
-- not `expected` any more. With `expected` NULL whatever was before is replaced, but nothing where a user of this
-- server is in the room: there the room's own events tell. `stripped` NULL keeps what is known of the room.
-- Nothing has checked whether the room allows the event (flag UNCHECKED): auth stays NULL until somebody does.
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
    -- The version that a server names is a claim, and no room must be lost to a wrong one.
    UPDATE rooms SET version = the_version WHERE nid = room AND version <> the_version
        AND (SELECT max(room_seq) FROM events WHERE room_nid = room) IS NULL;
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
    SELECT nid INTO event FROM events WHERE event_id = the_event_id;
    IF event IS NOT NULL AND newest IS NOT NULL THEN
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
    INSERT INTO oob_membership AS known (user_nid, room_nid, membership, event_nid, pos, stripped)
    VALUES (the_user, room, the_membership, event, new_pos, coalesce(the_stripped, '[]'))
    ON CONFLICT (user_nid, room_nid) DO UPDATE
    SET membership = excluded.membership, event_nid = excluded.event_nid, pos = excluded.pos, forgotten = false,
        stripped = coalesce(the_stripped, known.stripped);
    RETURN new_pos;
END
$$;

-- Stores a batch: one call, one durable commit. Every room must still have the head that its events were built
-- on; a room that has moved, or whose transaction ID or event ID is taken, is left out whole and reported.
-- Positions are given under one lock, which is freed only after the commit is visible: so position order is the
-- order in which changes become visible. READ COMMITTED: each statement after the lock sees all earlier commits.
--
-- Arrays with one prefix run in parallel, NULL being one of no elements; an `index` is the place of an event among
-- the events. prev and auth are slices [from, to] of `links`; from > to stands for none, NULL for "the live event
-- before" and for no state event.
--   r rooms, expected at NULL if they are new · n new rooms · e events, without seq for those that get no place in
--   the timeline · p numbers of events that are stored already and get their place now · o events from outside,
--   which may have been redacted before they came · c differences of states · s changes of the current state ·
--   m memberships · j, l servers whose first user joined a room, whose last one may have left it · f events owed to
--   a server that is not in the room · t transaction IDs · x forward extremities · d redactions · g events that are
--   missing, h those that came late
-- Returns (kind, a, b):  0: first and last position ·  1: room to rebuild, its highest room_seq (-1: purged)
--                        2: index of an event whose ID is stored already, or that no lease covers any more, its nid
--                        3: index of a transaction, its event
--                        4: index of a new room whose alias is taken ·  5: number of an event that is redacted now
CREATE OR REPLACE FUNCTION persist(
    r_nid bigint[], r_expected bigint[],
    n_nid bigint[], n_room_id text[], n_version text[], n_alias text[], n_creator bigint[], n_published boolean[],
    e_nid bigint[], e_room bigint[], e_seq bigint[], e_depth bigint[], e_ts bigint[], e_recv_ts bigint,
    e_type int[], e_sender bigint[], e_skey bigint[], e_state_ver bigint[], e_state_delta bigint[], e_flags int[],
    e_prev_from int[], e_prev_to int[], e_auth_from int[], e_auth_to int[], links bigint[],
    e_event_id bytea[], e_json bytea[],
    p_nid bigint[], o_index int[],
    c_id bigint[], c_room bigint[], c_base bigint[], c_parent bigint[], c_hash bytea[], c_entries bytea[],
    s_room bigint[], s_ver bigint[], s_type int[], s_skey bigint[], s_event bigint[],
    m_user bigint[], m_room bigint[], m_server bigint[], m_membership smallint[], m_event bigint[], m_index int[],
    j_room bigint[], j_server bigint[], j_index int[],
    l_room bigint[], l_server bigint[], l_index int[],
    f_room bigint[], f_server bigint[], f_index int[],
    t_device bigint[], t_room bigint[], t_what bytea[], t_txn bytea[], t_event bigint[],
    x_reset bigint[], x_room bigint[], x_event bigint[],
    d_room bigint[], d_target bytea[], d_event bigint[], d_by_power boolean[],
    g_room bigint[], g_event_id bytea[], g_child bigint[],
    h_room bigint[], h_event_id bytea[]
) RETURNS TABLE (kind int, a bigint, b bigint)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    bad bigint[] := '{}';
    more bigint[];
    placed int;
    e_pos bigint[];
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'persist needs READ COMMITTED';
    END IF;
    p_nid := coalesce(p_nid, '{}');
    links := coalesce(links, '{}');
    PERFORM pg_advisory_xact_lock(7810776);  -- the stream lock
    PERFORM set_config('lock_timeout', '200ms', true);

    SELECT array_agg(r.nid) INTO more FROM unnest(r_nid, r_expected) AS r(nid, expected)
    WHERE r.expected IS DISTINCT FROM (
        SELECT coalesce((SELECT e.room_seq FROM events e WHERE e.room_nid = r.nid AND e.room_seq IS NOT NULL
                         ORDER BY e.room_seq DESC LIMIT 1), 0)
        FROM rooms WHERE rooms.nid = r.nid);
    IF more IS NOT NULL THEN
        bad := more;
        RETURN QUERY
            SELECT 1, r.nid, CASE WHEN rooms.nid IS NULL THEN -1 ELSE coalesce(
                (SELECT max(e.room_seq) FROM events e WHERE e.room_nid = r.nid), 0) END
            FROM unnest(more) AS r(nid) LEFT JOIN rooms ON rooms.nid = r.nid;
    END IF;

    -- An event whose place was not known so far has its row; 48: SOFT_FAILED and REJECTED, which stay what they are.
    SELECT array_agg(t.room) INTO more FROM unnest(e_event_id, e_nid, e_room) AS t(event_id, nid, room)
    JOIN events known ON known.event_id = t.event_id
    WHERE known.nid <> t.nid OR known.room_seq IS NOT NULL OR known.flags & 48 <> 0;
    IF more IS NOT NULL THEN
        bad := bad || more;
        RETURN QUERY
            SELECT 2, t.i, known.nid FROM unnest(e_event_id, e_nid) WITH ORDINALITY AS t(event_id, nid, i)
            JOIN events known ON known.event_id = t.event_id
            WHERE known.nid <> t.nid OR known.room_seq IS NOT NULL OR known.flags & 48 <> 0;
    END IF;

    -- Rooms that are entered, for the first time or again; then there is a marker (8: HIDDEN). Nobody takes a lease
    -- before this is committed.
    IF 0 = ANY (r_expected) OR EXISTS (SELECT FROM unnest(e_flags) AS flags WHERE flags & 8 <> 0) THEN
        SELECT array_agg(r.nid) INTO more FROM unnest(r_nid, r_expected) AS r(nid, expected)
        WHERE r.nid <> ALL (bad) AND r.nid = ANY (e_room)
          AND (r.expected = 0 OR EXISTS (
              SELECT FROM unnest(e_room, e_flags) AS e(room, flags) WHERE e.room = r.nid AND e.flags & 8 <> 0))
          AND NOT coalesce((
              SELECT join_nid = ANY (e_nid) FROM room_joins WHERE room_nid = r.nid FOR SHARE), false);
        IF more IS NOT NULL THEN
            bad := bad || more;
            RETURN QUERY
                SELECT 2, t.i, t.nid FROM unnest(e_nid, e_room) WITH ORDINALITY AS t(nid, room, i)
                WHERE t.room = ANY (more);
        END IF;
    END IF;

    IF cardinality(t_device) > 0 THEN
        SELECT array_agg(t.room) INTO more
        FROM unnest(t_device, t_room, t_what, t_txn) AS t(device, room, what, txn)
        JOIN txn_ids o ON (o.room_nid, o.device_nid, o.what, o.txn) = (t.room, t.device, t.what, t.txn);
        IF more IS NOT NULL THEN
            bad := bad || more;
            RETURN QUERY
                SELECT 3, t.i, o.event_nid
                FROM unnest(t_device, t_room, t_what, t_txn) WITH ORDINALITY AS t(device, room, what, txn, i)
                JOIN txn_ids o ON (o.room_nid, o.device_nid, o.what, o.txn) = (t.room, t.device, t.what, t.txn);
        END IF;
    END IF;

    IF cardinality(n_nid) > 0 THEN
        INSERT INTO rooms (nid, room_id, version)
        SELECT n.nid, n.room_id, n.version FROM unnest(n_nid, n_room_id, n_version) AS n(nid, room_id, version)
        WHERE n.nid <> ALL (bad);
        WITH named AS (  -- what another session is adding at this moment is waited for
            INSERT INTO room_aliases (room_alias, room_nid, creator_nid)
            SELECT n.alias, n.nid, n.creator FROM unnest(n_nid, n_alias, n_creator) AS n(nid, alias, creator)
            WHERE n.nid <> ALL (bad) AND n.alias IS NOT NULL
            ON CONFLICT (room_alias) DO NOTHING
            RETURNING room_nid
        )
        SELECT array_agg(n.nid) INTO more FROM unnest(n_nid, n_alias) AS n(nid, alias)
        WHERE n.nid <> ALL (bad) AND n.alias IS NOT NULL AND n.nid NOT IN (SELECT room_nid FROM named);
        IF more IS NOT NULL THEN
            DELETE FROM rooms WHERE nid = ANY (more);
            bad := bad || more;
            RETURN QUERY
                SELECT 4, n.i, 0::bigint FROM unnest(n_nid) WITH ORDINALITY AS n(nid, i) WHERE n.nid = ANY (more);
        END IF;
        INSERT INTO published_rooms (room_nid)
        SELECT n.nid FROM unnest(n_nid, n_published) AS n(nid, published)
        WHERE n.nid <> ALL (bad) AND n.published;
    END IF;

    INSERT INTO events (nid, room_nid, room_seq, sub, depth, ts, recv_ts, type_nid, sender_nid, skey_nid,
                        state_ver, state_delta, flags, prev, auth, event_id, json)
    SELECT e.nid, e.room, e.seq, 0, e.depth, e.ts, e_recv_ts, e.type, e.sender, e.skey,
           e.state_ver, e.state_delta, e.flags,
           CASE WHEN e.prev_from IS NOT NULL THEN links[e.prev_from:e.prev_to] END,
           CASE WHEN e.auth_from IS NOT NULL THEN links[e.auth_from:e.auth_to] END,
           e.event_id, e.json
    FROM unnest(e_nid, e_room, e_seq, e_depth, e_ts, e_type, e_sender, e_skey, e_state_ver, e_state_delta, e_flags,
                e_prev_from, e_prev_to, e_auth_from, e_auth_to, e_event_id, e_json)
         AS e(nid, room, seq, depth, ts, type, sender, skey, state_ver, state_delta, flags,
              prev_from, prev_to, auth_from, auth_to, event_id, json)
    WHERE e.room <> ALL (bad) AND e.nid <> ALL (p_nid);

    IF cardinality(p_nid) > 0 THEN
        UPDATE events
        SET room_seq = e.seq, state_ver = e.state_ver, state_delta = e.state_delta, recv_ts = e_recv_ts,
            flags = e.flags | (events.flags & 64), json = e.json,
            prev = CASE WHEN e.prev_from IS NOT NULL THEN links[e.prev_from:e.prev_to] END,
            auth = CASE WHEN e.auth_from IS NOT NULL THEN links[e.auth_from:e.auth_to] END
        FROM unnest(e_nid, e_room, e_seq, e_state_ver, e_state_delta, e_flags, e_prev_from, e_prev_to,
                    e_auth_from, e_auth_to, e_json)
             AS e(nid, room, seq, state_ver, state_delta, flags, prev_from, prev_to, auth_from, auth_to, json)
        WHERE events.nid = e.nid AND e.nid = ANY (p_nid) AND e.room <> ALL (bad);
    END IF;

    IF cardinality(c_id) > 0 THEN
        INSERT INTO state_delta (id, room_nid, base_ver, parent, hash, entries)
        SELECT c.id, c.room, c.base, c.parent, c.hash, c.entries
        FROM unnest(c_id, c_room, c_base, c_parent, c_hash, c_entries) AS c(id, room, base, parent, hash, entries)
        WHERE c.room <> ALL (bad)
        ON CONFLICT (hash) DO NOTHING;
        UPDATE events SET state_delta = stored.id
        FROM unnest(c_id, c_hash) AS c(id, hash) JOIN state_delta AS stored ON stored.hash = c.hash
        WHERE events.nid = ANY (e_nid) AND events.state_delta = c.id AND stored.id <> c.id;
    END IF;

    -- The positions are kept: with no statistics, or old ones, they would be looked for in all of a room.
    e_pos := ARRAY(
        SELECT CASE WHEN e.seq IS NOT NULL AND e.room <> ALL (bad) THEN nextval('pos_seq') END
        FROM unnest(e_room, e_seq) WITH ORDINALITY AS e(room, seq, i) ORDER BY e.i);
    INSERT INTO stream (pos, kind, room_nid, room_seq, ref)
    SELECT e.pos, 1, e.room, e.seq, e.nid
    FROM unnest(e_pos, e_room, e_seq, e_nid) AS e(pos, room, seq, nid) WHERE e.pos IS NOT NULL;
    GET DIAGNOSTICS placed = ROW_COUNT;
    IF placed > 0 THEN
        kind := 0;
        a := currval('pos_seq') - placed + 1;
        b := currval('pos_seq');
        RETURN NEXT;
    END IF;

    IF cardinality(s_room) > 0 THEN
        INSERT INTO room_state_log (room_nid, ver, type_nid, skey_nid, event_nid)
        SELECT s.room, s.ver, s.type, s.skey, s.event
        FROM unnest(s_room, s_ver, s_type, s_skey, s_event) AS s(room, ver, type, skey, event)
        WHERE s.room <> ALL (bad);
    END IF;

    IF cardinality(m_user) > 0 THEN
        INSERT INTO memberships (user_nid, room_nid, server_nid, membership, event_nid, pos)
        SELECT m.user_nid, m.room, m.server, m.membership, m.event, e_pos[m.index]
        FROM unnest(m_user, m_room, m_server, m_membership, m_event, m_index)
             AS m(user_nid, room, server, membership, event, index)
        WHERE m.room <> ALL (bad)
        ON CONFLICT (user_nid, room_nid) DO UPDATE
        SET membership = excluded.membership, event_nid = excluded.event_nid, pos = excluded.pos,
            forgotten = false;
        DELETE FROM oob_membership AS oob USING unnest(m_user, m_room) AS m(user_nid, room)
        WHERE oob.user_nid = m.user_nid AND oob.room_nid = m.room AND m.room <> ALL (bad);
    END IF;

    IF cardinality(j_room) > 0 THEN
        INSERT INTO room_servers (room_nid, server_nid, from_seq)
        SELECT j.room, j.server, e_seq[j.index]
        FROM unnest(j_room, j_server, j_index) AS j(room, server, index)
        WHERE j.room <> ALL (bad) AND (
            SELECT max(from_seq) FROM room_servers AS open
            WHERE open.room_nid = j.room AND open.server_nid = j.server AND open.to_seq IS NULL) IS NULL;
    END IF;
    IF cardinality(l_room) > 0 THEN
        UPDATE room_servers AS open
        SET to_seq = e_seq[l.index], to_pos = e_pos[l.index]
        FROM unnest(l_room, l_server, l_index) AS l(room, server, index)
        WHERE open.room_nid = l.room AND open.server_nid = l.server AND open.to_seq IS NULL
          AND l.room <> ALL (bad) AND (  -- 1: join, the lowest
            SELECT min(membership) FROM memberships AS m
            WHERE m.room_nid = l.room AND m.server_nid = l.server) IS DISTINCT FROM 1;
    END IF;
    IF cardinality(f_room) > 0 THEN
        INSERT INTO fed_extra (server_nid, pos, room_nid, event_nid)
        SELECT f.server, e_pos[f.index], f.room, e_nid[f.index]
        FROM unnest(f_room, f_server, f_index) AS f(room, server, index)
        WHERE f.room <> ALL (bad) AND (
            SELECT max(from_seq) FROM room_servers AS owed
            WHERE owed.room_nid = f.room AND owed.server_nid = f.server
              AND owed.from_seq < e_seq[f.index] AND coalesce(owed.to_seq >= e_seq[f.index], true)) IS NULL;
    END IF;

    IF cardinality(t_device) > 0 THEN
        INSERT INTO txn_ids (device_nid, room_nid, what, txn, event_nid, ts)
        SELECT t.device, t.room, t.what, t.txn, t.event, e_recv_ts
        FROM unnest(t_device, t_room, t_what, t_txn, t_event) AS t(device, room, what, txn, event)
        WHERE t.room <> ALL (bad);
    END IF;

    IF cardinality(x_reset) > 0 THEN
        DELETE FROM room_ext WHERE room_nid = ANY (x_reset) AND room_nid <> ALL (bad);
        INSERT INTO room_ext (room_nid, event_nid)
        SELECT x.room, x.event FROM unnest(x_room, x_event) AS x(room, event) WHERE x.room <> ALL (bad);
    END IF;

    IF cardinality(h_room) > 0 THEN
        DELETE FROM missing_prev AS missing USING unnest(h_room, h_event_id) AS h(room, event_id)
        WHERE missing.room_nid = h.room AND missing.event_id = h.event_id AND h.room <> ALL (bad);
    END IF;
    IF cardinality(g_room) > 0 THEN
        INSERT INTO missing_prev (room_nid, event_id, child_nid)
        SELECT g.room, g.event_id, g.child FROM unnest(g_room, g_event_id, g_child) AS g(room, event_id, child)
        WHERE g.room <> ALL (bad)
        ON CONFLICT DO NOTHING;
    END IF;

    IF cardinality(d_room) > 0 THEN
        INSERT INTO redactions (room_nid, target, by_nid, by_power)
        SELECT d.room, d.target, d.event, d.by_power
        FROM unnest(d_room, d_target, d_event, d_by_power) AS d(room, target, event, by_power)
        WHERE d.room <> ALL (bad);
    END IF;
    IF cardinality(d_room) > 0 OR cardinality(o_index) > 0 THEN
        IF cardinality(d_room) > 0 OR EXISTS (
            SELECT FROM unnest(o_index) AS o(index)
            JOIN redactions AS r ON r.room_nid = e_room[o.index] AND r.target = e_event_id[o.index]) THEN
            RETURN QUERY SELECT 5, d.target, d.by_nid FROM apply_redactions(  -- see 0017
                ARRAY(SELECT e_nid[o.index] FROM unnest(o_index) AS o(index)), d_room, d_target, d_event) AS d;
        END IF;
    END IF;
END
$$;
