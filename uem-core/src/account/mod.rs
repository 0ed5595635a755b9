//! Who and what belongs to a tenant: the tenant itself, its users, nodes, devices, server names, and tokens for new nodes.
//! Records are plain data; the rules about changing them are in `service`.

mod device;
mod email;
mod name;
mod node;
mod tenant;
mod user;

pub use device::{Device, DeviceState};
pub use email::{Email, EmailError};
pub use name::ServerName;
pub use node::{Node, NodeState, Token, TokenState};
pub use tenant::{Rollover, SealedKey, Tenant, TenantSettings};
pub use user::{User, UserSource};

/// Longest display name, node name or platform text that is kept, characters.
pub const MAX_NAME: usize = 100;

/// Trims a name and checks it: 1 to `MAX_NAME` characters, no control characters (names reach logs and terminals).
pub(crate) fn name(what: &'static str, text: &str) -> Result<String, crate::CoreError> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > MAX_NAME {
        return Err(crate::CoreError::invalid(what, format!("use 1 to {MAX_NAME} characters")));
    }
    if text.chars().any(char::is_control) {
        return Err(crate::CoreError::invalid(what, "it contains control characters"));
    }
    Ok(text.to_owned())
}

/// What a peer says of itself, made fit for lists and logs: control characters dropped, cut to `MAX_NAME`.
pub(crate) fn told(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
}
