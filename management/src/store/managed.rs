//! Groups, profiles, assignments and commands: their rows, and what a commit writes of them.

use hedgerow_shared::{EntityId, TenantId};
use hedgerow_uem_core::command::{Command, State};
use hedgerow_uem_core::group::{Group, Principal, name_key};
use hedgerow_uem_core::profile::Profile;
use hedgerow_uem_core::store::{Change, StoreError};

use super::database::{by_id, by_tenant};
use super::rows::{Row, int, json, time};
use super::sql::Query;

/// Statements of a change, if it is about these.
pub(super) fn change_queries(tenant: &TenantId, change: &Change) -> Result<Vec<Query>, StoreError> {
    let delete = |sql, id| by_id(sql, tenant, id);
    Ok(match change {
        Change::PutGroup(group) => vec![put_group(group)],
        Change::DeleteGroup(id) => vec![
            delete("DELETE FROM group_member WHERE tenant = $1 AND (user_group = $2 OR member = $2)", *id),
            delete("DELETE FROM profile_assignment WHERE tenant = $1 AND holder = $2", *id),
            delete("DELETE FROM app_assignment WHERE tenant = $1 AND holder = $2 AND holder_kind = 'group'", *id),
            delete("DELETE FROM user_group WHERE tenant = $1 AND id = $2", *id),
        ],
        Change::PutMember { group, member } => {
            let sql = "INSERT INTO group_member (tenant, user_group, member, kind) VALUES ($1, $2, $3, $4) \
                       ON CONFLICT (tenant, user_group, member) DO NOTHING";
            vec![pair(sql, tenant, *group, *member).bind(member.kind())]
        }
        Change::DeleteMember { group, member } => {
            let sql = "DELETE FROM group_member WHERE tenant = $1 AND user_group = $2 AND member = $3";
            vec![pair(sql, tenant, *group, *member)]
        }
        Change::PutProfile(profile) => vec![put_profile(profile)?],
        Change::DeleteProfile(id) => vec![
            delete("DELETE FROM profile_assignment WHERE tenant = $1 AND profile = $2", *id),
            delete("DELETE FROM profile WHERE tenant = $1 AND id = $2", *id),
        ],
        Change::PutAssignment { profile, holder } => {
            let sql = "INSERT INTO profile_assignment (tenant, profile, holder, kind) VALUES ($1, $2, $3, $4) \
                       ON CONFLICT (tenant, profile, holder) DO NOTHING";
            vec![pair(sql, tenant, *profile, *holder).bind(holder.kind())]
        }
        Change::DeleteAssignment { profile, holder } => {
            let sql = "DELETE FROM profile_assignment WHERE tenant = $1 AND profile = $2 AND holder = $3";
            vec![pair(sql, tenant, *profile, *holder)]
        }
        Change::PutCommand(command) => vec![put_command(command)?],
        Change::MoveCommand { from, to } => vec![move_command(from, to)?],
        Change::ForgetCommands { device, before } => {
            let sql = "DELETE FROM device_command WHERE tenant = $1 AND device = $2 AND completed < $3";
            vec![delete(sql, *device).bind(int(before.0))]
        }
        _ => Vec::new(),
    })
}

fn pair(sql: &'static str, tenant: &TenantId, of: EntityId, who: Principal) -> Query {
    by_id(sql, tenant, of).bind(who.id().to_string())
}

fn put_group(group: &Group) -> Query {
    let sql = "INSERT INTO user_group (tenant, id, name, name_key, description, created) VALUES ($1, $2, $3, $4, $5, $6) \
               ON CONFLICT (tenant, id) DO UPDATE SET name = excluded.name, name_key = excluded.name_key, \
               description = excluded.description";
    by_id(sql, &group.tenant, group.id)
        .bind(group.name.clone())
        .bind(name_key(&group.name))
        .bind(group.description.clone())
        .bind(int(group.created.0))
}

fn put_profile(profile: &Profile) -> Result<Query, StoreError> {
    let sql = "INSERT INTO profile (tenant, id, category, name, description, place, is_default, disabled, settings, created, \
               modified) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
               ON CONFLICT (tenant, id) DO UPDATE SET name = excluded.name, description = excluded.description, \
               place = excluded.place, is_default = excluded.is_default, disabled = excluded.disabled, \
               settings = excluded.settings, modified = excluded.modified";
    let query = by_id(sql, &profile.tenant, profile.id)
        .bind(profile.category.as_str())
        .bind(profile.name.clone())
        .bind(profile.description.clone())
        .bind(i64::from(profile.rank))
        .bind(i64::from(profile.default))
        .bind(json(&profile.disabled)?)
        .bind(json(&profile.settings)?)
        .bind(int(profile.created.0))
        .bind(int(profile.modified.0));
    Ok(query)
}

fn put_command(command: &Command) -> Result<Query, StoreError> {
    let sql = "INSERT INTO device_command (tenant, id, device, number, kind, properties, state, created, expires, sent, \
               not_before, completed, error, result) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) \
               ON CONFLICT (tenant, id) DO UPDATE SET state = excluded.state, sent = excluded.sent, \
               not_before = excluded.not_before, completed = excluded.completed, error = excluded.error, \
               result = excluded.result";
    let query = by_id(sql, &command.tenant, command.id)
        .bind(command.device.to_string())
        .bind(int(command.number))
        .bind(command.kind.as_str())
        .bind(json(&command.properties)?)
        .bind(command.state.as_str())
        .bind(int(command.created.0))
        .bind(int(command.expires.0))
        .bind(i64::from(command.sent))
        .bind(time(command.not_before))
        .bind(time(command.completed))
        .bind(command.error.clone())
        .bind(json(&command.result)?);
    Ok(query)
}

/// Touches one row when the command is as it was read, none otherwise.
pub(super) fn move_command(from: &Command, to: &Command) -> Result<Query, StoreError> {
    let sql = "UPDATE device_command SET state = $3, sent = $4, not_before = $5, completed = $6, error = $7, result = $8 \
               WHERE tenant = $1 AND id = $2 AND state = $9 AND sent = $10";
    let query = by_id(sql, &to.tenant, to.id)
        .bind(to.state.as_str())
        .bind(i64::from(to.sent))
        .bind(time(to.not_before))
        .bind(time(to.completed))
        .bind(to.error.clone())
        .bind(json(&to.result)?)
        .bind(from.state.as_str())
        .bind(i64::from(from.sent));
    Ok(query.into_condition())
}

/// Of somebody in groups or with profiles: `$2` is their id, `$3` their kind.
pub(super) fn of_principal(sql: &'static str, tenant: &TenantId, who: Principal) -> Query {
    by_tenant(sql, tenant).bind(who.id().to_string()).bind(who.kind())
}

impl Row<'_> {
    pub(super) fn group(&self) -> Result<Group, StoreError> {
        Ok(Group {
            tenant: self.parse("tenant")?,
            id: self.parse("id")?,
            name: self.text("name")?,
            description: self.text("description")?,
            created: self.time("created")?,
        })
    }

    /// From an id in `column` and a `kind`.
    pub(super) fn principal(&self, column: &str) -> Result<Principal, StoreError> {
        let id = self.parse(column)?;
        match self.text("kind")?.as_str() {
            "user" => Ok(Principal::User(id)),
            "group" => Ok(Principal::Group(id)),
            _ => Err(self.corrupt("kind", "unknown word")),
        }
    }

    pub(super) fn profile(&self) -> Result<Profile, StoreError> {
        Ok(Profile {
            tenant: self.parse("tenant")?,
            id: self.parse("id")?,
            category: self.parse("category")?,
            name: self.text("name")?,
            description: self.text("description")?,
            rank: self.small("place")?,
            default: self.number("is_default")? != 0,
            disabled: self.json("disabled")?,
            settings: self.json("settings")?,
            created: self.time("created")?,
            modified: self.time("modified")?,
        })
    }

    pub(super) fn command(&self) -> Result<Command, StoreError> {
        let word = self.text("state")?;
        let state = State::ALL.into_iter().find(|state| state.as_str() == word);
        Ok(Command {
            tenant: self.parse("tenant")?,
            id: self.parse("id")?,
            device: self.parse("device")?,
            number: self.number("number")?,
            kind: self.parse("kind")?,
            properties: self.json("properties")?,
            state: state.ok_or_else(|| self.corrupt("state", "unknown word"))?,
            created: self.time("created")?,
            expires: self.time("expires")?,
            sent: self.small("sent")?,
            not_before: self.time_or_null("not_before")?,
            completed: self.time_or_null("completed")?,
            error: self.text_or_null("error")?,
            result: self.json("result")?,
        })
    }

    pub(super) fn small(&self, column: &str) -> Result<u32, StoreError> {
        u32::try_from(self.number(column)?).map_err(|e| self.corrupt(column, e))
    }
}
