//! What a commit writes: a record becomes statements. Both databases take the same ones.

use hedgerow_shared::TenantId;
use hedgerow_uem_core::account::{Device, Node, ServerName, Tenant, Token, User, UserSource};
use hedgerow_uem_core::activation::ActivationPassword;
use hedgerow_uem_core::audit;
use hedgerow_uem_core::ca::CertificateRecord;
use hedgerow_uem_core::group::name_key;
use hedgerow_uem_core::licence::Installed;
use hedgerow_uem_core::placement::Placement;
use hedgerow_uem_core::profile::ActivationType;
use hedgerow_uem_core::store::{Change, StoreError};

use super::database::{by_id, by_tenant};
use super::rows::{base64, device_state, int, json, node_state, time};
use super::sql::Query;
use super::{admins, apps, inventory, managed};

/// Touches one row when the revision is the expected one, none otherwise.
pub(super) fn put_tenant(tenant: &Tenant, expected: Option<u64>) -> Result<Query, StoreError> {
    let sql = match expected {
        None => {
            "INSERT INTO tenant (id, name, created, revision, config_epoch, config_version, config_issued, ca_certificate, \
             ca_key, config_certificate, config_key, settings, default_route, audit_number, audit_hash, rollover) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) ON CONFLICT (id) DO NOTHING"
        }
        Some(_) => {
            "UPDATE tenant SET name = $2, created = $3, revision = $4, config_epoch = $5, config_version = $6, \
             config_issued = $7, ca_certificate = $8, ca_key = $9, config_certificate = $10, config_key = $11, \
             settings = $12, default_route = $13, audit_number = $14, audit_hash = $15, \
             rollover = $16 WHERE id = $1 AND revision = $17"
        }
    };
    let query = by_tenant(sql, &tenant.id)
        .bind(tenant.name.clone())
        .bind(int(tenant.created.0))
        .bind(int(tenant.revision))
        .bind(int(tenant.config.epoch))
        .bind(int(tenant.config.version))
        .bind(int(tenant.config_issued.0))
        .bind(base64(&tenant.ca_certificate))
        .bind(base64(&tenant.ca_key.0))
        .bind(base64(&tenant.config_certificate))
        .bind(base64(&tenant.config_key.0))
        .bind(json(&tenant.settings)?)
        .bind(tenant.default_route.to_string())
        .bind(int(tenant.audit.number))
        .bind(base64(&tenant.audit.hash))
        .bind(tenant.rollover.as_ref().map(json).transpose()?);
    Ok(match expected {
        None => query,
        Some(revision) => query.bind(int(revision)),
    })
}

pub(super) fn change_queries(tenant: &TenantId, change: &Change) -> Result<Vec<Query>, StoreError> {
    Ok(match change {
        Change::PutUser(user) => vec![put_user(user)],
        Change::PutPassword(password) => vec![put_password(password)],
        Change::DeletePassword(user) => {
            vec![by_id("DELETE FROM activation_password WHERE tenant = $1 AND account = $2", tenant, *user)]
        }
        Change::PutNode(node) => vec![put_node(node)?],
        Change::PutDevice(device) => vec![put_device(device)],
        Change::PutToken(token) => vec![put_token(token)?],
        Change::AddCertificate(certificate) => vec![add_certificate(tenant, certificate)],
        Change::SetRules(rules) => {
            let delete = by_tenant("DELETE FROM access_rule WHERE tenant = $1", tenant);
            let insert = "INSERT INTO access_rule (tenant, position, rule) VALUES ($1, $2, $3)";
            replace_list(tenant, delete, insert, rules)?
        }
        Change::SetRoutes(routes) => {
            let delete = by_tenant("DELETE FROM route WHERE tenant = $1", tenant);
            let insert = "INSERT INTO route (tenant, position, route) VALUES ($1, $2, $3)";
            replace_list(tenant, delete, insert, routes)?
        }
        Change::PutName(name) => vec![put_name(name)],
        Change::DeleteName(name) => {
            vec![by_tenant("DELETE FROM server_name WHERE tenant = $1 AND name = $2", tenant).bind(name.clone())]
        }
        Change::PutPlacement(placement) => vec![put_placement(tenant, placement)?],
        Change::PutLicence(licence) => vec![put_licence(tenant, licence)],
        Change::DeleteLicence => vec![by_tenant("DELETE FROM licence WHERE tenant = $1", tenant)],
        Change::PutGroup(_)
        | Change::DeleteGroup(_)
        | Change::PutMember { .. }
        | Change::DeleteMember { .. }
        | Change::PutProfile(_)
        | Change::DeleteProfile(_)
        | Change::PutAssignment { .. }
        | Change::DeleteAssignment { .. }
        | Change::PutCommand(_)
        | Change::MoveCommand { .. }
        | Change::ForgetCommands { .. } => managed::change_queries(tenant, change)?,
        Change::Admin(change) => admins::change_queries(tenant, change)?,
        Change::App(change) => apps::change_queries(tenant, change)?,
        Change::PutStanding(_) | Change::NoteAsked { .. } => inventory::change_queries(tenant, change)?,
    })
}

fn put_user(user: &User) -> Query {
    let sql = "INSERT INTO account (tenant, id, email, display_name, active, created, name_key, directory, external) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
               ON CONFLICT (tenant, id) DO UPDATE SET email = excluded.email, display_name = excluded.display_name, \
               active = excluded.active, name_key = excluded.name_key, directory = excluded.directory, \
               external = excluded.external";
    let (directory, external) = match &user.source {
        UserSource::Local => (None, None),
        UserSource::Directory { directory, external } => (Some(directory.to_string()), Some(external.clone())),
    };
    let query = by_id(sql, &user.tenant, user.id).bind(user.email.to_string()).bind(user.display_name.clone());
    let query = query.bind(i64::from(user.active)).bind(int(user.created.0)).bind(name_key(&user.display_name));
    query.bind(directory).bind(external)
}

fn put_password(password: &ActivationPassword) -> Query {
    let sql = "INSERT INTO activation_password (tenant, account, id, sealed, created, expires, wrong) \
               VALUES ($1, $2, $3, $4, $5, $6, $7) \
               ON CONFLICT (tenant, account) DO UPDATE SET id = excluded.id, sealed = excluded.sealed, \
               created = excluded.created, expires = excluded.expires, wrong = excluded.wrong";
    by_id(sql, &password.tenant, password.user)
        .bind(password.id.to_string())
        .bind(password.sealed.as_deref().map(base64))
        .bind(int(password.created.0))
        .bind(int(password.expires.0))
        .bind(i64::from(password.wrong))
}

fn put_device(device: &Device) -> Query {
    let sql = "INSERT INTO device (tenant, id, account, name, platform, state, created, revoked, last_seen, \
               serial, fingerprint, not_before, not_after, issuer, activation, obeys_epoch, obeys_version) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) \
               ON CONFLICT (tenant, id) DO UPDATE SET account = excluded.account, name = excluded.name, \
               platform = excluded.platform, state = excluded.state, revoked = excluded.revoked, \
               last_seen = excluded.last_seen, serial = excluded.serial, fingerprint = excluded.fingerprint, \
               not_before = excluded.not_before, not_after = excluded.not_after, issuer = excluded.issuer, \
               activation = excluded.activation, obeys_epoch = excluded.obeys_epoch, \
               obeys_version = excluded.obeys_version";
    let query = by_id(sql, &device.tenant, device.id)
        .bind(device.user.to_string())
        .bind(device.name.clone())
        .bind(device.platform.clone())
        .bind(device_state(device.state))
        .bind(int(device.created.0))
        .bind(time(device.revoked))
        .bind(time(device.last_seen));
    bind_certificate(query, &device.certificate)
        .bind(device.activation.map_or("", ActivationType::as_str))
        .bind(device.obeys.map(|version| int(version.epoch)))
        .bind(device.obeys.map(|version| int(version.version)))
}

fn put_node(node: &Node) -> Result<Query, StoreError> {
    let sql = "INSERT INTO node (tenant, id, name, server_group, origins, state, created, revoked, last_seen, \
               serial, fingerprint, not_before, not_after, issuer) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) \
               ON CONFLICT (tenant, id) DO UPDATE SET name = excluded.name, server_group = excluded.server_group, \
               origins = excluded.origins, state = excluded.state, revoked = excluded.revoked, \
               last_seen = excluded.last_seen, serial = excluded.serial, fingerprint = excluded.fingerprint, \
               not_before = excluded.not_before, not_after = excluded.not_after, issuer = excluded.issuer";
    let query = by_id(sql, &node.tenant, node.id)
        .bind(node.name.clone())
        .bind(node.group.to_string())
        .bind(json(&node.origins)?)
        .bind(node_state(node.state))
        .bind(int(node.created.0))
        .bind(time(node.revoked))
        .bind(time(node.last_seen));
    Ok(bind_certificate(query, &node.certificate))
}

fn bind_certificate(query: Query, certificate: &CertificateRecord) -> Query {
    query
        .bind(certificate.serial.clone())
        .bind(certificate.fingerprint.clone())
        .bind(int(certificate.not_before.0))
        .bind(int(certificate.not_after.0))
        .bind(certificate.issuer.clone())
}

fn put_token(token: &Token) -> Result<Query, StoreError> {
    let sql = "INSERT INTO enrolment_token (tenant, id, secret_hash, name, server_group, origins, created, expires, used, \
               used_by, revoked) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
               ON CONFLICT (tenant, id) DO UPDATE SET used = excluded.used, used_by = excluded.used_by, \
               revoked = excluded.revoked";
    let query = by_id(sql, &token.tenant, token.id)
        .bind(base64(&token.secret_hash))
        .bind(token.name.clone())
        .bind(token.group.to_string())
        .bind(json(&token.origins)?)
        .bind(int(token.created.0))
        .bind(int(token.expires.0))
        .bind(time(token.used.map(|(at, _)| at)))
        .bind(token.used.map(|(_, node)| node.to_string()))
        .bind(time(token.revoked));
    Ok(query)
}

fn put_placement(tenant: &TenantId, placement: &Placement) -> Result<Query, StoreError> {
    let sql = "INSERT INTO placement (tenant, placed) VALUES ($1, $2) \
               ON CONFLICT (tenant) DO UPDATE SET placed = excluded.placed";
    Ok(by_tenant(sql, tenant).bind(json(placement)?))
}

fn put_name(name: &ServerName) -> Query {
    let sql = "INSERT INTO server_name (tenant, name, origin, created) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (tenant, name) DO UPDATE SET origin = excluded.origin";
    by_tenant(sql, &name.tenant).bind(name.name.clone()).bind(name.origin.as_str()).bind(int(name.created.0))
}

fn put_licence(tenant: &TenantId, installed: &Installed) -> Query {
    let sql = "INSERT INTO licence (tenant, id, text, installed) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (tenant) DO UPDATE SET id = excluded.id, text = excluded.text, installed = excluded.installed";
    let query = by_tenant(sql, tenant).bind(installed.licence.id.clone()).bind(installed.signed.to_pem());
    query.bind(int(installed.installed.0))
}

fn add_certificate(tenant: &TenantId, certificate: &CertificateRecord) -> Query {
    let sql = "INSERT INTO certificate (tenant, holder, role, serial, fingerprint, not_before, not_after, issuer) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    bind_certificate(by_id(sql, tenant, certificate.holder).bind(certificate.role.as_str()), certificate)
}

fn replace_list<T: serde::Serialize>(
    tenant: &TenantId,
    delete: Query,
    insert: &'static str,
    entries: &[T],
) -> Result<Vec<Query>, StoreError> {
    let mut queries = vec![delete];
    for (position, entry) in (0i64..).zip(entries) {
        queries.push(by_tenant(insert, tenant).bind(position).bind(json(entry)?));
    }
    Ok(queries)
}

pub(super) fn add_audit(tenant: &TenantId, record: &audit::Record) -> Query {
    let sql = "INSERT INTO audit (tenant, number, time, actor, action, subject, outcome, detail, hash) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    by_tenant(sql, tenant)
        .bind(int(record.number))
        .bind(int(record.time.0))
        .bind(record.actor.clone())
        .bind(record.action.clone())
        .bind(record.subject.clone())
        .bind(record.outcome.as_str())
        .bind(record.detail.clone())
        .bind(base64(&record.hash))
}
