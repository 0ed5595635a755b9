//! Who may reach what through the relay: the table of `architecture.md` section 2, as one pure function.
//!
//! | origin | at the relay |
//! |---|---|
//! | `core`, `bws` | anonymous (rate-limited by the caller), and every link of the tenant |
//! | `proxy`, `secure-connect`, `directory` | a device's or node's certificate |
//! | `gateway`, `mdm` | only passed through unopened, by server name (`pass`): never from a link or by CONNECT |
//!
//! What the relay decides here keeps strangers off the nodes. What a device may do inside, the node decides alone, by
//! the end-to-end certificate.

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::message::Destination;
use hedgerow_shared::{Origin, Role, TenantId};

/// Who asks, as far as the relay has verified it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker<'a> {
    /// An HTTP CONNECT without certificate.
    Anonymous,
    /// A link, whose role and tenant were proved.
    Link(Role, &'a TenantId),
}

/// Whether `asker` may open a stream to this destination.
///
/// # Errors
/// `Forbidden`, with the reason.
pub fn stream(asker: Asker<'_>, to: &Destination) -> Result<(), Fault> {
    same_tenant(asker, &to.tenant)?;
    match (to.origin, asker) {
        (Origin::Core | Origin::Bws, Asker::Anonymous | Asker::Link(..)) => Ok(()),
        (Origin::Proxy | Origin::SecureConnect | Origin::Directory, Asker::Link(Role::Device | Role::Node, _)) => {
            Ok(())
        }
        (Origin::Proxy | Origin::SecureConnect | Origin::Directory, Asker::Link(Role::Core, _)) => {
            Err(forbidden(to.origin, "only a device's or node's certificate reaches it"))
        }
        (Origin::Proxy | Origin::SecureConnect | Origin::Directory, Asker::Anonymous) => {
            Err(forbidden(to.origin, "it needs a client certificate; raw CONNECT to it is switched off"))
        }
        (Origin::Gateway | Origin::Mdm, _) => {
            Err(forbidden(to.origin, "it is reached by its server name, not by request"))
        }
    }
}

/// Whether `asker` may have a lane to this destination: work streams only, the core's origins use link streams.
///
/// # Errors
/// `Forbidden`, with the reason.
pub fn lane(asker: Asker<'_>, to: &Destination) -> Result<(), Fault> {
    stream(asker, to)?;
    if to.origin.anonymous() {
        return Err(forbidden(to.origin, "it is served by link streams, not by lanes"));
    }
    Ok(())
}

/// Whether a session of this role may serve these origins. The certificate's own list is checked in `admit`.
///
/// # Errors
/// `Forbidden`, with the reason.
pub fn serve(role: Role, origins: &[Origin]) -> Result<(), Fault> {
    for origin in origins {
        let allowed = match origin {
            Origin::Core | Origin::Bws => role == Role::Core,
            Origin::Mdm => matches!(role, Role::Core | Role::Node),
            Origin::Proxy | Origin::SecureConnect | Origin::Directory | Origin::Gateway => role == Role::Node,
        };
        if !allowed {
            return Err(Fault::new(Code::Forbidden, format!("a {role} does not serve origin {origin}")));
        }
    }
    Ok(())
}

fn same_tenant(asker: Asker<'_>, tenant: &TenantId) -> Result<(), Fault> {
    match asker {
        Asker::Link(_, own) if own != tenant => {
            Err(Fault::new(Code::Forbidden, "the destination is another tenant's than the link's"))
        }
        Asker::Link(..) | Asker::Anonymous => Ok(()),
    }
}

fn forbidden(origin: Origin, why: &str) -> Fault {
    Fault::new(Code::Forbidden, format!("origin {origin}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(tenant: &str, origin: Origin) -> Destination {
        Destination { tenant: tenant.parse().unwrap(), origin, group: None, instance: None, node: None }
    }

    #[test]
    fn the_table_holds_for_every_asker_and_origin() {
        let tenant: TenantId = "S12345678".parse().unwrap();
        let link = |role| Asker::Link(role, &tenant);
        for origin in Origin::ALL.iter().copied() {
            let (anonymous, core, certified) = match origin {
                Origin::Core | Origin::Bws => (true, true, true),
                Origin::Proxy | Origin::SecureConnect | Origin::Directory => (false, false, true),
                Origin::Gateway | Origin::Mdm => (false, false, false),
            };
            let to = to("S12345678", origin);
            assert_eq!(stream(Asker::Anonymous, &to).is_ok(), anonymous, "{origin}");
            assert_eq!(stream(link(Role::Core), &to).is_ok(), core, "{origin}");
            assert_eq!(stream(link(Role::Device), &to).is_ok(), certified, "{origin}");
            assert_eq!(stream(link(Role::Node), &to).is_ok(), certified, "{origin}");
        }
    }

    #[test]
    fn nobody_reaches_another_tenant() {
        let tenant: TenantId = "S12345678".parse().unwrap();
        for role in Role::ALL.iter().copied() {
            for origin in Origin::ALL.iter().copied() {
                let fault = stream(Asker::Link(role, &tenant), &to("S87654321", origin)).unwrap_err();
                assert_eq!(fault.code, Code::Forbidden);
            }
        }
    }

    #[test]
    fn lanes_carry_work_and_nothing_else() {
        let tenant: TenantId = "S12345678".parse().unwrap();
        let device = Asker::Link(Role::Device, &tenant);
        assert!(lane(device, &to("S12345678", Origin::Proxy)).is_ok());
        assert!(lane(device, &to("S12345678", Origin::Core)).is_err());
        assert!(lane(Asker::Anonymous, &to("S12345678", Origin::Proxy)).is_err());
    }

    #[test]
    fn origins_are_served_by_the_role_they_belong_to() {
        assert!(serve(Role::Core, &[Origin::Core, Origin::Bws]).is_ok());
        assert!(serve(Role::Node, &[Origin::Proxy, Origin::Directory]).is_ok());
        assert!(serve(Role::Node, &[Origin::Proxy, Origin::Core]).is_err());
        assert!(serve(Role::Node, &[Origin::Gateway, Origin::Mdm]).is_ok());
        assert!(serve(Role::Core, &[Origin::Mdm]).is_ok() && serve(Role::Core, &[Origin::Gateway]).is_err());
        assert!(serve(Role::Device, &[Origin::Proxy]).is_err());
        assert!(serve(Role::Device, &[]).is_ok());
    }
}
