-- Names whose TLS clients relays pass through, unopened, to the tenant.
CREATE TABLE server_name (
    tenant  TEXT   NOT NULL REFERENCES tenant (id),
    name    TEXT   NOT NULL, -- lower case
    origin  TEXT   NOT NULL, -- gateway, mdm, core
    created BIGINT NOT NULL,
    PRIMARY KEY (tenant, name)
);
