-- Expand: the CA that is to follow (JSON, its key sealed), and under which CA a certificate stands ('' = not noted).
ALTER TABLE tenant ADD COLUMN rollover TEXT;
ALTER TABLE device ADD COLUMN issuer TEXT NOT NULL DEFAULT '';
ALTER TABLE node ADD COLUMN issuer TEXT NOT NULL DEFAULT '';
ALTER TABLE certificate ADD COLUMN issuer TEXT NOT NULL DEFAULT '';
