-- Groups of users, profiles and their assignments, commands to devices.

-- Called user_group because group is a reserved word.
CREATE TABLE user_group (
    tenant      TEXT   NOT NULL REFERENCES tenant (id),
    id          TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    name_key    TEXT   NOT NULL, -- lower case: what names are compared by
    description TEXT   NOT NULL,
    created     BIGINT NOT NULL,
    PRIMARY KEY (tenant, id),
    UNIQUE (tenant, name_key)
);

-- Who stands in a group itself. kind: user, group.
CREATE TABLE group_member (
    tenant     TEXT NOT NULL,
    user_group TEXT NOT NULL,
    member     TEXT NOT NULL,
    kind       TEXT NOT NULL,
    PRIMARY KEY (tenant, user_group, member),
    FOREIGN KEY (tenant, user_group) REFERENCES user_group (tenant, id)
);
CREATE INDEX group_member_of ON group_member (tenant, member, user_group);
CREATE INDEX group_member_nesting ON group_member (tenant, kind, member, user_group);

CREATE TABLE profile (
    tenant      TEXT   NOT NULL REFERENCES tenant (id),
    id          TEXT   NOT NULL,
    category    TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    description TEXT   NOT NULL,
    place       BIGINT NOT NULL, -- its rank, from 1; while ranks move two may have one
    is_default  BIGINT NOT NULL, -- 0 or 1
    disabled    TEXT   NOT NULL, -- JSON
    settings    TEXT   NOT NULL, -- JSON
    created     BIGINT NOT NULL,
    modified    BIGINT NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX profile_by_place ON profile (tenant, category, place);
CREATE INDEX profile_by_default ON profile (tenant, is_default);

-- To whom a profile is assigned. kind: user, group.
CREATE TABLE profile_assignment (
    tenant  TEXT NOT NULL,
    profile TEXT NOT NULL,
    holder  TEXT NOT NULL,
    kind    TEXT NOT NULL,
    PRIMARY KEY (tenant, profile, holder),
    FOREIGN KEY (tenant, profile) REFERENCES profile (tenant, id)
);
CREATE INDEX profile_assignment_of ON profile_assignment (tenant, holder, profile);

CREATE TABLE device_command (
    tenant     TEXT   NOT NULL,
    id         TEXT   NOT NULL,
    device     TEXT   NOT NULL,
    number     BIGINT NOT NULL,
    kind       TEXT   NOT NULL,
    properties TEXT   NOT NULL, -- JSON
    state      TEXT   NOT NULL,
    created    BIGINT NOT NULL,
    expires    BIGINT NOT NULL,
    sent       BIGINT NOT NULL,
    not_before BIGINT,
    completed  BIGINT, -- NULL while something may still become of it
    error      TEXT,
    result     TEXT   NOT NULL, -- JSON
    PRIMARY KEY (tenant, id),
    FOREIGN KEY (tenant, device) REFERENCES device (tenant, id)
);
CREATE INDEX device_command_queue ON device_command (tenant, device, number);
