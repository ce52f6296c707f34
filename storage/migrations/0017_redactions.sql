-- Lets redactions take effect: those that have come, and those that waited for events that have come. Whatever
-- stores either calls it. A redaction holds when its sender may redact others, or is of the server of the target's
-- sender; the event that made a room cannot be redacted. As long as a redaction has no effect clients do not see it.
--   came: numbers of events that may have been redacted before they came · d redactions that came
-- Returns the numbers of events that are redacted now, each with those of the redactions that hold.
CREATE FUNCTION apply_redactions(came bigint[], d_room bigint[], d_target bytea[], d_event bigint[])
RETURNS TABLE (target bigint, by_nid bigint)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    targets bigint[];
    holding bigint[];
BEGIN
    SELECT coalesce(array_agg(event.nid), '{}'), coalesce(array_agg(d.by_nid), '{}') INTO targets, holding
    FROM (
        SELECT r.room_nid, r.target, r.by_nid, r.by_power
        FROM unnest(d_room, d_target, d_event) AS new(room, target, event)
        JOIN redactions AS r ON r.room_nid = new.room AND r.target = new.target AND r.by_nid = new.event
        UNION
        SELECT r.room_nid, r.target, r.by_nid, r.by_power FROM unnest(came) AS new(nid)
        JOIN events ON events.nid = new.nid
        JOIN redactions AS r ON r.room_nid = events.room_nid AND r.target = events.event_id
    ) AS d
    JOIN events AS event ON event.event_id = d.target AND event.room_nid = d.room_nid
    JOIN events AS redaction ON redaction.nid = d.by_nid
    JOIN atoms AS redacter ON redacter.nid = redaction.sender_nid
    JOIN atoms AS author ON author.nid = event.sender_nid
    WHERE event.type_nid <> coalesce((SELECT nid FROM event_types WHERE name = 'm.room.create'), 0)
      AND (d.by_power OR substring(convert_from(author.s, 'UTF8') FROM ':(.*)')
                       = substring(convert_from(redacter.s, 'UTF8') FROM ':(.*)'));

    UPDATE events SET flags = flags | 64 WHERE nid = ANY (targets) AND flags & 64 = 0;  -- REDACTED
    UPDATE events SET flags = flags # 4096  -- SERVERS_ONLY
    WHERE nid = ANY (holding || d_event) AND (flags & 4096 <> 0) = (nid = ANY (holding));
    RETURN QUERY SELECT * FROM unnest(targets, holding);
END
$$;
