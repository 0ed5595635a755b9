-- Expand: how much of a device is managed ('' = it activated before there were types, or its platform is not known).
ALTER TABLE device ADD COLUMN activation TEXT NOT NULL DEFAULT '';
