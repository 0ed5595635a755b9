-- Expand: the configuration that a device has said is in force there, and the way to commands whose time is over.
ALTER TABLE device ADD COLUMN obeys_epoch BIGINT;
ALTER TABLE device ADD COLUMN obeys_version BIGINT;
CREATE INDEX device_command_open ON device_command (tenant, expires) WHERE completed IS NULL;
