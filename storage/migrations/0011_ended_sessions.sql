-- Sessions whose tokens every process has to ask about again, since they ended, or some of their tokens did, or
-- their user's rights changed. Triggers write them, in the transaction of the change itself: no way to end a
-- session can leave that out. Rows are kept for an hour.
CREATE TABLE ended_sessions (
    written_by xid8 NOT NULL DEFAULT pg_current_xact_id(),  -- not a sequence: those give numbers before they commit
    session_id bigint NOT NULL,
    ts         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (written_by, session_id)
);

CREATE FUNCTION note_ended_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ended_sessions (session_id) VALUES (OLD.session_id) ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER session_ended AFTER DELETE OR UPDATE ON sessions
    FOR EACH ROW EXECUTE FUNCTION note_ended_session();

CREATE FUNCTION note_changed_rights() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ended_sessions (session_id)
    SELECT session_id FROM sessions JOIN devices USING (device_nid) WHERE user_nid = NEW.user_nid
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER rights_changed AFTER UPDATE ON users FOR EACH ROW
    WHEN ((OLD.is_admin, OLD.is_guest, OLD.is_deactivated) <> (NEW.is_admin, NEW.is_guest, NEW.is_deactivated))
    EXECUTE FUNCTION note_changed_rights();
