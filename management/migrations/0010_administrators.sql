-- Administrators and roles; users that come from directories.

ALTER TABLE account ADD COLUMN directory TEXT; -- NULL: the user is the core's own
ALTER TABLE account ADD COLUMN external TEXT;  -- what the directory knows them by
CREATE UNIQUE INDEX account_by_directory ON account (tenant, directory, external);

CREATE TABLE admin_role (
    tenant      TEXT NOT NULL REFERENCES tenant (id),
    id          TEXT NOT NULL,
    name        TEXT NOT NULL,
    permissions TEXT NOT NULL, -- JSON
    user_groups TEXT NOT NULL, -- JSON; null: of all
    PRIMARY KEY (tenant, id)
);

CREATE TABLE administrator (
    tenant       TEXT   NOT NULL,
    account      TEXT   NOT NULL,
    role         TEXT   NOT NULL, -- the name of one that is there, or the id of one of admin_role
    created      BIGINT NOT NULL,
    last_sign_in BIGINT,
    sealed       TEXT, -- salt and hash, sealed under the key-encryption key; NULL: no password here
    must_change  BIGINT NOT NULL, -- 0 or 1
    password_set BIGINT,
    wrong        BIGINT NOT NULL,
    locked_until BIGINT,
    PRIMARY KEY (tenant, account),
    FOREIGN KEY (tenant, account) REFERENCES account (tenant, id)
);
