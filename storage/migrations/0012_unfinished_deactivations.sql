-- Deactivated accounts whose rooms are still to be left. A row goes once there is nothing to leave.
CREATE TABLE unfinished_deactivations (
    user_nid    bigint PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    attempts    int NOT NULL DEFAULT 0,
    next_try_ts bigint NOT NULL DEFAULT 0
);
INSERT INTO unfinished_deactivations (user_nid) SELECT user_nid FROM users WHERE is_deactivated;
