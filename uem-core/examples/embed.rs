//! The domain inside another program: no server, no database, no runtime. `cargo run -p hedgerow-uem-core --example embed`
//!
//! Time and randomness are given with every call; storage is whatever implements `Store` (`Memory` here).

#![allow(clippy::print_stdout, reason = "a program")]

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use hedgerow_shared::UnixTime;
use hedgerow_uem_core::account::TenantSettings;
use hedgerow_uem_core::group::Principal;
use hedgerow_uem_core::profile::{Category, Platform};
use hedgerow_uem_core::seal::Kek;
use hedgerow_uem_core::service::{NewProfile, NewTenant, NewUser};
use hedgerow_uem_core::store::Memory;
use hedgerow_uem_core::{Actor, Call, Core, CoreError, Random};

/// The system's randomness.
struct System;

impl Random for System {
    fn fill(&mut self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).expect("the system has randomness");
    }
}

async fn organisation() -> Result<String, CoreError> {
    let core = Core::new(Memory::new(), Kek::new(&[7; 32]));
    let (mut random, tenant) = (System, "S12345678".parse().expect("a tenant id"));
    let call = &mut Call::new(Actor::Admin("me".into()), UnixTime(1_800_000_000), &mut random);
    let new = NewTenant {
        id: "S12345678".parse().expect("a tenant id"),
        name: "Example".into(),
        settings: TenantSettings::default(),
    };
    core.create_tenant(call, new).await?;
    let email = "anna@example.com".parse().expect("an address");
    let anna = core.add_user(call, &tenant, NewUser { email, display_name: "Anna".into() }).await?;
    let staff = core.add_group(call, &tenant, "staff", "").await?;
    core.add_member(call, &tenant, staff.id, Principal::User(anna.id)).await?;
    let mut strict = NewProfile { category: Category::ItConfig, name: "strict".into(), ..NewProfile::default() };
    strict.settings.insert("passwordLength".into(), 12.into());
    let strict = core.add_profile(call, &tenant, strict).await?;
    core.assign_profile(call, &tenant, strict.id, Principal::Group(staff.id)).await?;
    let found = core.effective_profiles(&tenant, anna.id, Some(Platform::Linux)).await?;
    core.verify_audit(&tenant).await?;
    Ok(found.iter().map(|one| format!("{} {}: {:?}", one.profile.category, one.profile.name, one.reason)).collect())
}

pub(crate) fn main() {
    // `Memory` never waits: one look at the future is enough. Over a database, use a runtime.
    let future = pin!(organisation());
    let Poll::Ready(told) = future.poll(&mut Context::from_waker(Waker::noop())) else { unreachable!("nothing waits") };
    println!("{}", told.expect("the domain refused"));
}
