-- Accounts of this server, their devices, and what proves who is asking. Times are milliseconds since 1970.
CREATE TABLE users (                 -- kept for ever: a user ID is never given out twice
    user_nid       bigint PRIMARY KEY REFERENCES atoms,  -- of the whole user ID
    password_hash  text,             -- Argon2id; NULL: this account has no password
    created_ts     bigint NOT NULL,
    user_type      text,             -- bot, support; NULL: a person
    is_admin       boolean NOT NULL DEFAULT false,
    is_guest       boolean NOT NULL DEFAULT false,
    is_deactivated boolean NOT NULL DEFAULT false,
    is_erased      boolean NOT NULL DEFAULT false  -- later readers get the user's events redacted
);

CREATE TABLE devices (               -- gone when the device logs out, and all that names it with it
    device_nid   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_nid     bigint NOT NULL REFERENCES users ON DELETE CASCADE,
    device_id    text NOT NULL,
    display_name text,
    created_ts   bigint NOT NULL,
    last_seen_ts bigint NOT NULL,
    last_seen_ip text,
    UNIQUE (user_nid, device_id)
);

CREATE TABLE sessions (              -- one login on a device; access tokens name it and are valid while it is there
    session_id          bigint PRIMARY KEY,  -- random: a backup that is restored never meets the token of a lost session
    device_nid          bigint NOT NULL UNIQUE REFERENCES devices ON DELETE CASCADE,
    created_ts          bigint NOT NULL,
    current_refresh_nid bigint NOT NULL DEFAULT 0  -- the newest refresh token whose pair was used; 0: none yet
);

-- Each row is a pair of refresh and access token. A pair is valid when it is the session's current one, or when
-- it was issued for the current one and waits for its first use. Any other use is a reuse.
CREATE TABLE refresh_tokens (
    refresh_nid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id  bigint NOT NULL REFERENCES sessions ON DELETE CASCADE,
    parent_nid  bigint NOT NULL,     -- the refresh token that this one was issued for; 0: by a login
    token_hash  bytea NOT NULL UNIQUE,  -- SHA-256
    expires_ts  bigint NOT NULL
);
CREATE INDEX ON refresh_tokens (session_id);

CREATE TABLE registration_tokens (   -- kept until an admin revokes them
    token_hash   bytea PRIMARY KEY,  -- SHA-256
    uses_allowed int,                -- NULL: any number
    completed    int NOT NULL DEFAULT 0,
    created_ts   bigint NOT NULL,
    expires_ts   bigint              -- NULL: never
);

CREATE TABLE ui_auth_sessions (      -- bounded in number for each user; gone when used or expired
    session_hash bytea PRIMARY KEY,  -- SHA-256
    user_nid     bigint NOT NULL,    -- 0: nobody is logged in yet
    operation    bytea NOT NULL,     -- method and path that the session was begun for
    params       bytea NOT NULL,     -- JSON: the parameters of the request, its passwords hashed
    completed    bytea NOT NULL,     -- JSON: stage -> what it proved
    created_ts   bigint NOT NULL,
    expires_ts   bigint NOT NULL
);
CREATE INDEX ON ui_auth_sessions (user_nid, created_ts);
CREATE INDEX ON ui_auth_sessions (expires_ts);

CREATE TABLE registration_nonces (   -- of the shared-secret registration; bounded in number, gone when used or expired
    nonce_hash bytea PRIMARY KEY,    -- SHA-256
    expires_ts bigint NOT NULL
);
CREATE INDEX ON registration_nonces (expires_ts);
