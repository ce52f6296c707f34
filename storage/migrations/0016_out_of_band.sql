-- Stores what a user of this server has become in a room that this server is not in: the event as an outlier, and
-- a row of oob_membership, which one position of the stream tells of (see `persist` for the lock).
--
-- Nothing changes, and NULL is returned, where this is known already, and where the user's newest member event is
-- not `expected` any more. With `expected` NULL whatever was before is replaced, but nothing where a user of this
-- server is in the room: there the room's own events tell. `stripped` NULL keeps what is known of the room.
-- Nothing has checked whether the room allows the event (flag UNCHECKED): auth stays NULL until somebody does.
CREATE FUNCTION store_out_of_band(
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
        AND NOT EXISTS (SELECT FROM events WHERE room_nid = room AND room_seq IS NOT NULL);
    IF expected IS NULL AND EXISTS (
        SELECT FROM memberships WHERE room_nid = room AND server_nid = own_server AND membership = 1) THEN
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
