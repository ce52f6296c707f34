-- Stores a batch: one call, one durable commit. Every room must still have the head that its events were built
-- on; a room that has moved, or whose transaction ID or event ID is taken, is left out whole and reported.
-- Positions are given under one lock, which is freed only after the commit is visible: so position order is the
-- order in which changes become visible. READ COMMITTED: each statement after the lock sees all earlier commits.
--
-- Arrays with one prefix run in parallel. prev and auth are slices [from, to] of `links`; m_index is the index of
-- the member event among the events.
-- Returns (kind, a, b):  0: first and last position ·  1: room to rebuild, its highest room_seq (-1: purged)
--                        2: index of an event whose ID is stored already, its nid ·  3: index of a transaction, its event
--                        4: index of a new room whose alias is taken
CREATE FUNCTION persist(
    r_nid bigint[], r_expected bigint[],
    n_nid bigint[], n_room_id text[], n_version text[], n_alias text[], n_creator bigint[], n_published boolean[],
    e_nid bigint[], e_room bigint[], e_seq bigint[], e_depth bigint[], e_ts bigint[], e_recv_ts bigint,
    e_type int[], e_sender bigint[], e_skey bigint[], e_state_ver bigint[], e_state_delta bigint[], e_flags int[],
    e_prev_from int[], e_prev_to int[], e_auth_from int[], e_auth_to int[], links bigint[],
    e_event_id bytea[], e_json bytea[],
    s_room bigint[], s_ver bigint[], s_type int[], s_skey bigint[], s_event bigint[],
    m_user bigint[], m_room bigint[], m_membership smallint[], m_event bigint[], m_index int[],
    t_device bigint[], t_room bigint[], t_what bytea[], t_txn bytea[], t_event bigint[],
    x_reset bigint[], x_room bigint[], x_event bigint[],
    d_room bigint[], d_target bytea[], d_event bigint[]
) RETURNS TABLE (kind int, a bigint, b bigint)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    bad bigint[] := '{}';
    more bigint[];
    first_pos bigint;
    last_pos bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'persist needs READ COMMITTED';
    END IF;
    PERFORM pg_advisory_xact_lock(7810776);  -- the stream lock
    PERFORM set_config('lock_timeout', '200ms', true);

    SELECT coalesce(array_agg(r.nid), '{}') INTO more
    FROM unnest(r_nid, r_expected) AS r(nid, expected)
    WHERE r.expected <> coalesce(
        (SELECT e.room_seq FROM events e WHERE e.room_nid = r.nid AND e.room_seq IS NOT NULL
         ORDER BY e.room_seq DESC LIMIT 1), 0)
       OR (r.nid <> ALL (n_nid)) AND NOT EXISTS (SELECT FROM rooms WHERE rooms.nid = r.nid);
    IF cardinality(more) > 0 THEN
        bad := more;
        RETURN QUERY
            SELECT 1, r.nid, CASE WHEN rooms.nid IS NULL THEN -1 ELSE coalesce(
                (SELECT max(e.room_seq) FROM events e WHERE e.room_nid = r.nid), 0) END
            FROM unnest(more) AS r(nid) LEFT JOIN rooms ON rooms.nid = r.nid;
    END IF;

    SELECT array_agg(DISTINCT e_room[found.i]) INTO more
    FROM (SELECT t.i FROM unnest(e_event_id) WITH ORDINALITY AS t(event_id, i)
          JOIN events stored ON stored.event_id = t.event_id) AS found;
    IF more IS NOT NULL THEN
        bad := bad || more;
        RETURN QUERY
            SELECT 2, t.i, stored.nid FROM unnest(e_event_id) WITH ORDINALITY AS t(event_id, i)
            JOIN events stored ON stored.event_id = t.event_id;
    END IF;

    IF cardinality(t_device) > 0 THEN
        SELECT array_agg(DISTINCT t.room) INTO more
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
    WHERE e.room <> ALL (bad);

    WITH added AS (
        INSERT INTO stream (pos, kind, room_nid, room_seq, ref)
        SELECT nextval('pos_seq'), 1, e.room, e.seq, e.nid
        FROM unnest(e_room, e_seq, e_nid) WITH ORDINALITY AS e(room, seq, nid, i)
        WHERE e.room <> ALL (bad) AND e.seq IS NOT NULL
        ORDER BY e.i
        RETURNING pos
    )
    SELECT min(pos), max(pos) INTO first_pos, last_pos FROM added;

    IF cardinality(s_room) > 0 THEN
        INSERT INTO room_state_log (room_nid, ver, type_nid, skey_nid, event_nid)
        SELECT s.room, s.ver, s.type, s.skey, s.event
        FROM unnest(s_room, s_ver, s_type, s_skey, s_event) AS s(room, ver, type, skey, event)
        WHERE s.room <> ALL (bad);
    END IF;

    IF cardinality(m_user) > 0 THEN
        INSERT INTO memberships (user_nid, room_nid, membership, event_nid, pos)
        SELECT m.user_nid, m.room, m.membership, m.event,
               first_pos + m.index - 1 - CASE WHEN cardinality(bad) = 0 THEN 0 ELSE
                   (SELECT count(*) FROM unnest(e_room[1:m.index]) AS earlier(room) WHERE earlier.room = ANY (bad))
               END
        FROM unnest(m_user, m_room, m_membership, m_event, m_index) AS m(user_nid, room, membership, event, index)
        WHERE m.room <> ALL (bad)
        ON CONFLICT (user_nid, room_nid) DO UPDATE
        SET membership = excluded.membership, event_nid = excluded.event_nid, pos = excluded.pos,
            forgotten = false;
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

    IF cardinality(d_room) > 0 THEN
        INSERT INTO redactions (room_nid, target, by_nid)
        SELECT d.room, d.target, d.event FROM unnest(d_room, d_target, d_event) AS d(room, target, event)
        WHERE d.room <> ALL (bad);
        UPDATE events SET flags = flags | 64  -- REDACTED
        FROM unnest(d_room, d_target) AS d(room, target)
        WHERE events.event_id = d.target AND events.room_nid = d.room AND d.room <> ALL (bad);
    END IF;

    IF first_pos IS NOT NULL THEN
        RETURN QUERY SELECT 0, first_pos, last_pos;
    END IF;
END
$$;
