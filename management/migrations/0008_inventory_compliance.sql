-- What devices tell of themselves, and how they stand.

CREATE TABLE device_inventory (
    tenant     TEXT   NOT NULL,
    device     TEXT   NOT NULL,
    attributes TEXT,            -- JSON; NULL until it has told
    told       BIGINT,          -- when it told them
    apps       BIGINT NOT NULL, -- how many are in installed_app
    apps_told  BIGINT,          -- when it told them
    asked      BIGINT,          -- when the core last asked by itself
    PRIMARY KEY (tenant, device),
    FOREIGN KEY (tenant, device) REFERENCES device (tenant, id)
);

CREATE TABLE installed_app (
    tenant     TEXT NOT NULL,
    device     TEXT NOT NULL,
    identifier TEXT NOT NULL,
    name       TEXT NOT NULL,
    version    TEXT NOT NULL,
    PRIMARY KEY (tenant, device, identifier),
    FOREIGN KEY (tenant, device) REFERENCES device (tenant, id)
);
CREATE INDEX installed_app_on ON installed_app (tenant, identifier, device);

CREATE TABLE device_compliance (
    tenant      TEXT   NOT NULL,
    device      TEXT   NOT NULL,
    verdict     TEXT   NOT NULL, -- compliant, not_compliant, no_profile
    quarantined BIGINT NOT NULL, -- 0 or 1
    profile     TEXT,
    changed     BIGINT NOT NULL,
    causes      TEXT   NOT NULL, -- JSON
    PRIMARY KEY (tenant, device),
    FOREIGN KEY (tenant, device) REFERENCES device (tenant, id)
);
CREATE INDEX device_compliance_by_verdict ON device_compliance (tenant, verdict, device);
CREATE INDEX device_compliance_quarantined ON device_compliance (tenant, quarantined, device);
