-- Expand: the configuration that a device has said is in force there, and the ways to
-- commands whose time is over, to devices that count and do not, and to users who are switched off.
ALTER TABLE device ADD COLUMN obeys_epoch BIGINT;
ALTER TABLE device ADD COLUMN obeys_version BIGINT;
CREATE INDEX device_command_open ON device_command (tenant, expires) WHERE completed IS NULL;
CREATE INDEX device_active ON device (tenant, account) WHERE state = 'active';
CREATE INDEX device_revoked ON device (tenant, id) WHERE state = 'revoked';
CREATE INDEX node_revoked ON node (tenant, id) WHERE state = 'revoked';
CREATE INDEX account_inactive ON account (tenant, id) WHERE active = 0;
