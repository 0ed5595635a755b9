-- The domain's records. Only what SQLite and PostgreSQL read alike: TEXT, BIGINT, no blobs (binary values are
-- base64), ids as lower-case UUIDs, times in seconds since 1970, words and JSON as the domain writes them.
-- Every table begins with the tenant; every key does.

CREATE TABLE tenant (
    id                 TEXT   NOT NULL PRIMARY KEY,
    name               TEXT   NOT NULL,
    created            BIGINT NOT NULL,
    revision           BIGINT NOT NULL,
    config_epoch       BIGINT NOT NULL,
    config_version     BIGINT NOT NULL,
    config_issued      BIGINT NOT NULL,
    ca_certificate     TEXT   NOT NULL,
    ca_key             TEXT   NOT NULL, -- sealed under the key-encryption key
    config_certificate TEXT   NOT NULL,
    config_key         TEXT   NOT NULL, -- sealed likewise
    settings           TEXT   NOT NULL, -- JSON
    default_route      TEXT   NOT NULL,
    audit_number       BIGINT NOT NULL,
    audit_hash         TEXT   NOT NULL
);

-- Users. Called account because user is a reserved word.
CREATE TABLE account (
    tenant       TEXT   NOT NULL REFERENCES tenant (id),
    id           TEXT   NOT NULL,
    email        TEXT   NOT NULL, -- normalised
    display_name TEXT   NOT NULL,
    active       BIGINT NOT NULL, -- 0 or 1
    created      BIGINT NOT NULL,
    PRIMARY KEY (tenant, id),
    UNIQUE (tenant, email)
);

CREATE TABLE activation_password (
    tenant  TEXT   NOT NULL,
    account TEXT   NOT NULL,
    id      TEXT   NOT NULL,
    sealed  TEXT, -- sealed under the key-encryption key; NULL once blocked
    created BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    wrong   BIGINT NOT NULL,
    PRIMARY KEY (tenant, account),
    FOREIGN KEY (tenant, account) REFERENCES account (tenant, id)
);

CREATE TABLE device (
    tenant      TEXT   NOT NULL,
    id          TEXT   NOT NULL,
    account     TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    platform    TEXT   NOT NULL,
    state       TEXT   NOT NULL, -- active, revoked
    created     BIGINT NOT NULL,
    revoked     BIGINT,
    last_seen   BIGINT,
    -- Its newest certificate.
    serial      TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL,
    not_before  BIGINT NOT NULL,
    not_after   BIGINT NOT NULL,
    PRIMARY KEY (tenant, id),
    FOREIGN KEY (tenant, account) REFERENCES account (tenant, id)
);

CREATE INDEX device_by_account ON device (tenant, account, id);

CREATE TABLE node (
    tenant       TEXT   NOT NULL REFERENCES tenant (id),
    id           TEXT   NOT NULL,
    name         TEXT   NOT NULL,
    server_group TEXT   NOT NULL,
    origins      TEXT   NOT NULL, -- JSON
    state        TEXT   NOT NULL, -- active, revoked
    created      BIGINT NOT NULL,
    revoked      BIGINT,
    last_seen    BIGINT,
    -- Its newest certificate.
    serial       TEXT   NOT NULL,
    fingerprint  TEXT   NOT NULL,
    not_before   BIGINT NOT NULL,
    not_after    BIGINT NOT NULL,
    PRIMARY KEY (tenant, id)
);

CREATE TABLE enrolment_token (
    tenant       TEXT   NOT NULL REFERENCES tenant (id),
    id           TEXT   NOT NULL,
    secret_hash  TEXT   NOT NULL,
    name         TEXT   NOT NULL,
    server_group TEXT   NOT NULL,
    origins      TEXT   NOT NULL, -- JSON
    created      BIGINT NOT NULL,
    expires      BIGINT NOT NULL,
    used         BIGINT,
    used_by      TEXT,
    revoked      BIGINT,
    PRIMARY KEY (tenant, id)
);

-- Every leaf that was ever issued.
CREATE TABLE certificate (
    tenant      TEXT   NOT NULL REFERENCES tenant (id),
    serial      TEXT   NOT NULL,
    holder      TEXT   NOT NULL,
    role        TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL,
    not_before  BIGINT NOT NULL,
    not_after   BIGINT NOT NULL,
    PRIMARY KEY (tenant, serial)
);

CREATE INDEX certificate_by_holder ON certificate (tenant, holder, not_before, serial);

CREATE TABLE access_rule (
    tenant   TEXT   NOT NULL REFERENCES tenant (id),
    position BIGINT NOT NULL,
    rule     TEXT   NOT NULL, -- JSON, as in the signed configuration
    PRIMARY KEY (tenant, position)
);

CREATE TABLE route (
    tenant   TEXT   NOT NULL REFERENCES tenant (id),
    position BIGINT NOT NULL,
    route    TEXT   NOT NULL, -- JSON, as in the signed configuration
    PRIMARY KEY (tenant, position)
);

-- Only ever added to; each hash covers the one before.
CREATE TABLE audit (
    tenant  TEXT   NOT NULL REFERENCES tenant (id),
    number  BIGINT NOT NULL,
    time    BIGINT NOT NULL,
    actor   TEXT   NOT NULL,
    action  TEXT   NOT NULL,
    subject TEXT   NOT NULL,
    outcome TEXT   NOT NULL,
    detail  TEXT   NOT NULL,
    hash    TEXT   NOT NULL,
    PRIMARY KEY (tenant, number)
);

CREATE TABLE acknowledgement (
    tenant  TEXT   NOT NULL REFERENCES tenant (id),
    holder  TEXT   NOT NULL,
    epoch   BIGINT NOT NULL,
    version BIGINT NOT NULL,
    time    BIGINT NOT NULL,
    PRIMARY KEY (tenant, holder)
);
