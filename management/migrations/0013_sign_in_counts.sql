-- Contract (no release has read them): wrong attempts to sign in are counted in memory, by source.
ALTER TABLE administrator DROP COLUMN wrong;
ALTER TABLE administrator DROP COLUMN locked_until;
