-- Apps: catalogue, configurations, groups of apps, assignments, lists.

CREATE TABLE app (
    tenant     TEXT   NOT NULL REFERENCES tenant (id),
    id         TEXT   NOT NULL,
    platform   TEXT   NOT NULL,
    identifier TEXT   NOT NULL, -- what devices know it by
    name       TEXT   NOT NULL,
    vendor     TEXT   NOT NULL,
    versions   TEXT   NOT NULL, -- JSON
    source     TEXT   NOT NULL, -- JSON
    created    BIGINT NOT NULL,
    modified   BIGINT NOT NULL,
    PRIMARY KEY (tenant, id),
    UNIQUE (tenant, platform, identifier)
);

CREATE TABLE app_config (
    tenant   TEXT   NOT NULL,
    id       TEXT   NOT NULL,
    app      TEXT   NOT NULL,
    name     TEXT   NOT NULL,
    place    BIGINT NOT NULL, -- its rank, from 1; while ranks move two may have one
    settings TEXT   NOT NULL, -- JSON
    PRIMARY KEY (tenant, id),
    FOREIGN KEY (tenant, app) REFERENCES app (tenant, id)
);
CREATE INDEX app_config_by_place ON app_config (tenant, app, place);

CREATE TABLE app_group (
    tenant      TEXT   NOT NULL REFERENCES tenant (id),
    id          TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    name_key    TEXT   NOT NULL, -- lower case: what names are compared by
    description TEXT   NOT NULL,
    created     BIGINT NOT NULL,
    PRIMARY KEY (tenant, id),
    UNIQUE (tenant, name_key)
);

CREATE TABLE app_group_member (
    tenant    TEXT NOT NULL,
    app_group TEXT NOT NULL,
    app       TEXT NOT NULL,
    PRIMARY KEY (tenant, app_group, app),
    FOREIGN KEY (tenant, app_group) REFERENCES app_group (tenant, id),
    FOREIGN KEY (tenant, app) REFERENCES app (tenant, id)
);
CREATE INDEX app_group_member_of ON app_group_member (tenant, app);

-- To whom an app or a group of apps is assigned. target_kind: app, group. holder_kind: user, group.
CREATE TABLE app_assignment (
    tenant      TEXT NOT NULL REFERENCES tenant (id),
    target      TEXT NOT NULL,
    target_kind TEXT NOT NULL,
    holder      TEXT NOT NULL,
    holder_kind TEXT NOT NULL,
    disposition TEXT NOT NULL, -- denied, required, optional
    config      TEXT,
    PRIMARY KEY (tenant, target, holder)
);
CREATE INDEX app_assignment_of ON app_assignment (tenant, holder, target);
CREATE INDEX app_assignment_with ON app_assignment (tenant, config);

CREATE TABLE app_listing (
    tenant     TEXT NOT NULL REFERENCES tenant (id),
    list       TEXT NOT NULL, -- restricted, approved
    platform   TEXT NOT NULL,
    identifier TEXT NOT NULL, -- may end in *
    PRIMARY KEY (tenant, platform, list, identifier)
);
