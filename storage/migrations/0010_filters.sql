-- Filters that users have saved. An ID is made of the content, so saving a filter twice gives one row. The number
-- of a user's filters is bounded: the one that was saved longest ago goes.
CREATE TABLE filters (
    user_nid  bigint NOT NULL REFERENCES users ON DELETE CASCADE,
    filter_id text NOT NULL,
    json      bytea NOT NULL,
    saved_ts  bigint NOT NULL,
    PRIMARY KEY (user_nid, filter_id)
);
