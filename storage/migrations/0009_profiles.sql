-- Profile fields of local users. value: JSON, as bytes because NUL is legal in it.
CREATE TABLE profiles (
    user_nid bigint NOT NULL,
    field    text NOT NULL,
    value    bytea NOT NULL,
    PRIMARY KEY (user_nid, field)
);
