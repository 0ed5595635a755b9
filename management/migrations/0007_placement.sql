-- Expand: which devices are under which enterprise connectivity profile, as the configuration in force has it (JSON).
CREATE TABLE placement (
    tenant TEXT NOT NULL PRIMARY KEY REFERENCES tenant (id),
    placed TEXT NOT NULL
);
