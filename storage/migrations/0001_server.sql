-- What this database belongs to. One row; the incarnation changes when a backup is restored, so that
-- sync tokens of another history are known as such.
CREATE TABLE server (
    only_row         boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    server_name      text NOT NULL,
    incarnation      text NOT NULL,
    access_token_key bytea NOT NULL  -- the HMAC key of access tokens
);
