-- Which key signs for which server, and which servers cannot be reached. Times are milliseconds since 1970.
CREATE TABLE signing_keys (          -- of this server, kept for ever: old events are signed with them
    key_id     text PRIMARY KEY,
    public_key bytea NOT NULL,
    retired_ts bigint                -- when another key took its place; NULL: the key that signs now
);

CREATE TABLE server_keys (           -- of other servers, kept for ever, bounded in number for each server
    server_name    text NOT NULL,
    key_id         text NOT NULL,
    public_key     bytea NOT NULL,
    valid_until_ts bigint NOT NULL,  -- events up to then may be signed with it
    PRIMARY KEY (server_name, key_id)
);

CREATE TABLE server_key_responses (  -- the newest list of keys of another server, as it signed it
    server_name    text PRIMARY KEY,
    response       bytea NOT NULL,   -- canonical JSON
    fetched_ts     bigint NOT NULL,
    valid_until_ts bigint NOT NULL
);

CREATE TABLE destinations (          -- servers that failed when they were last asked; gone when one answers
    server_name text PRIMARY KEY,
    failures    int NOT NULL,
    retry_ts    bigint NOT NULL
);
CREATE INDEX ON destinations (retry_ts);
