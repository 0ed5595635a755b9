-- Users are found by what their display name begins with.
ALTER TABLE account ADD COLUMN name_key TEXT NOT NULL DEFAULT ''; -- lower case
-- Other letters than these get their lower case with the user's next change; an address finds every user.
UPDATE account SET name_key = lower(display_name);
CREATE INDEX account_by_name ON account (tenant, name_key, email);
