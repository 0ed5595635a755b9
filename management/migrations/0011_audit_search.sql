-- Audit records are found by time, and in the order of time by who did it, what it was, and to what.

CREATE INDEX audit_by_time ON audit (tenant, time, number);
CREATE INDEX audit_by_actor ON audit (tenant, actor, time, number);
CREATE INDEX audit_by_action ON audit (tenant, action, time, number);
CREATE INDEX audit_by_subject ON audit (tenant, subject, time, number);

