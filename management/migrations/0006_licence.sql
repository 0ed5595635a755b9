-- The tenant's licence, as it is shown to relays; none, or one.
CREATE TABLE licence (
    tenant    TEXT   NOT NULL REFERENCES tenant (id) PRIMARY KEY,
    id        TEXT   NOT NULL, -- for people who look in here; what counts stands in the text
    text      TEXT   NOT NULL, -- PEM
    installed BIGINT NOT NULL
);
