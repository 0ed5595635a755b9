//! Bench `core`: what the domain costs over both databases, with few users and with many: importing users, finding one,
//! working out a user's effective profiles, devices that ask for commands. In process: no HTTP, no relay.

#[path = "../../management/tests/common/postgres.rs"]
#[expect(clippy::unwrap_used, clippy::expect_used, reason = "the server of the tests")]
mod postgres;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::stream;
use hedgerow_management::store::{Database, Place, State, SystemRandom};
use hedgerow_shared::{EntityId, Role, TenantId, UnixTime};
use hedgerow_uem_core::account::{Device, DeviceState, TenantSettings};
use hedgerow_uem_core::bulk;
use hedgerow_uem_core::ca::CertificateRecord;
use hedgerow_uem_core::command::{Kind, Reply};
use hedgerow_uem_core::group::Principal;
use hedgerow_uem_core::profile::Category;
use hedgerow_uem_core::service::{NewCommand, NewProfile, NewTenant};
use hedgerow_uem_core::store::{Change, Commit, Page, Store as _};
use hedgerow_uem_core::{Actor, Call, Core};

use crate::Output;
use crate::figures::Figures;
use crate::machine::Machine;
use crate::progress::Progress;

const NOW: UnixTime = UnixTime(1_800_000_000);
/// Groups: each stands in the one of a third of its number.
const GROUPS: usize = 60;
/// Profiles, over four categories.
const PROFILES: usize = 40;
/// Requests at once, where there are many.
const AT_ONCE: usize = 16;

/// Options of `core`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    output: Output,
    /// Users of the small tenant and of the large one
    #[arg(long, value_delimiter = ',', default_value = "1000,100000", env = "HEDGEROW_BENCH_USERS")]
    users: Vec<usize>,
    /// Devices that ask for commands
    #[arg(long, default_value_t = 10_000, env = "HEDGEROW_BENCH_DEVICES")]
    devices: usize,
    /// Users asked about, one after the other
    #[arg(long, default_value_t = 2000, env = "HEDGEROW_BENCH_QUESTIONS")]
    questions: usize,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    anyhow::ensure!(options.users.iter().all(|n| (1..=1_000_000).contains(n)), "1 to 1,000,000 users");
    anyhow::ensure!(
        (1..=100_000).contains(&options.devices) && options.questions > 0,
        "1 to 100,000 devices, and questions"
    );
    let machine = Machine::look();
    println!("{machine}; databases on this machine's disk, PostgreSQL with its defaults");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let server = postgres::Server::start();
    let mut figures = Figures::default();
    let mut progress = Progress::new(2 * options.users.len());
    let result = runtime.block_on(async {
        for users in &options.users {
            for name in ["sqlite", "postgres"] {
                let subject = format!("{name}, {users} users");
                progress.next(&subject);
                let folder = tempfile::tempdir()?;
                let place = match name {
                    "sqlite" => Place::in_directory(folder.path()),
                    _ => {
                        let options = Box::new(server.url(&server.database()).parse().context("the server's URL")?);
                        Place::Postgres { options, wait: Duration::from_secs(10) }
                    }
                };
                let state = State::open(folder.path(), &place).await?;
                let ground = Ground { core: Arc::new(Core::new(state.store, state.kek)), tenant: "S12345678".parse()? };
                measure(&ground, *users, options, &subject, &mut figures).await.with_context(|| subject.clone())?;
            }
        }
        Ok(())
    });
    progress.clear();
    print!("{}", figures.table());
    if let Some(path) = &options.output.json {
        figures.write_json(&machine, path)?;
    }
    result
}

struct Ground {
    core: Arc<Core<Database>>,
    tenant: TenantId,
}

async fn measure(
    ground: &Ground,
    users: usize,
    options: &Options,
    subject: &str,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let Ground { core, tenant } = ground;
    let mut add = |figure: &str, unit, value| figures.add(0, subject, figure, unit, value);
    let took = ground.settle(users).await?;
    add("users imported", "1/s", users as f64 / took.as_secs_f64());
    let ids = ground.users().await?;
    let some: Vec<_> = (0..options.questions).map(|n| (n, ids[n * 7919 % ids.len()])).collect();

    let times = one_by_one(&some, |(_, id)| core.effective_profiles(tenant, id, None)).await?;
    add("effective profiles of a user, p50", "us", at(&times, 0.5));
    add("effective profiles of a user, p99", "us", at(&times, 0.99));
    let email = |n: usize| format!("user{}@example.com", n * 7919 % users).parse();
    let times =
        one_by_one(&some, |(n, _)| async move { core.user_by_email(tenant, &email(n).expect("an address")).await });
    add("user by address, p50", "us", at(&times.await?, 0.5));
    let times = one_by_one(&some, |(n, _)| {
        let begins = format!("user{}@", n * 7919 % users);
        async move { core.find_users(tenant, &begins, 20).await }
    });
    add("search by the begin of an address, p50", "us", at(&times.await?, 0.5));
    let times = one_by_one(&some, |(n, _)| {
        let begins = format!("person {}", n * 7919 % users);
        async move { core.find_users(tenant, &begins, 20).await }
    });
    add("search by the begin of a name, p50", "us", at(&times.await?, 0.5));
    let begun = Instant::now();
    let listed = ground.users().await?.len();
    add("users listed", "1/s", listed as f64 / begun.elapsed().as_secs_f64());

    let devices = ground.devices(options.devices, &ids).await?;
    let skip = BTreeSet::new();
    let polled = all_at_once(&devices, |device| {
        let skip = &skip;
        async move {
            let mut random = SystemRandom;
            let call = &mut Call::new(Actor::Device(device), NOW, &mut random);
            core.next_command(call, tenant, device, skip).await
        }
    })
    .await?;
    add("devices that ask and are to be idle", "1/s", devices.len() as f64 / polled.as_secs_f64());
    let given = Instant::now();
    let some = &devices[..devices.len().min(1000)];
    for device in some {
        let new = NewCommand {
            device: *device,
            kind: Kind::RequestDeviceInfo,
            properties: serde_json::Map::new(),
            lifetime_seconds: 3600,
        };
        core.queue_command(&mut Call::new(Actor::System, NOW, &mut SystemRandom), tenant, new).await?;
    }
    add("commands given, one after the other", "1/s", some.len() as f64 / given.elapsed().as_secs_f64());
    let carried = all_at_once(some, |device| async move {
        let mut random = SystemRandom;
        let call = &mut Call::new(Actor::Device(device), NOW, &mut random);
        let got = core.next_command(call, tenant, device, &BTreeSet::new()).await?;
        let Some((command, _)) = got else { return Ok(()) };
        let reply = Reply::Done { result: serde_json::Map::new() };
        core.answer_command(call, tenant, device, command.id, reply).await.map(drop)
    });
    add("commands fetched and answered", "1/s", some.len() as f64 / carried.await?.as_secs_f64());
    Ok(())
}

/// Microseconds of each, in order of size.
async fn one_by_one<T: Copy, F: Future<Output = Result<R, E>>, R, E: std::error::Error + Send + Sync + 'static>(
    of: &[T],
    ask: impl Fn(T) -> F,
) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::with_capacity(of.len());
    for one in of {
        let begun = Instant::now();
        ask(*one).await?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// How long all take, `AT_ONCE` at a time.
async fn all_at_once<F: Future<Output = Result<R, E>>, R, E: std::error::Error + Send + Sync + 'static>(
    of: &[EntityId],
    ask: impl Fn(EntityId) -> F,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut asked = stream::iter(of.iter().copied().map(ask)).buffer_unordered(AT_ONCE);
    while let Some(answer) = asked.next().await {
        answer?;
    }
    Ok(begun.elapsed())
}

fn at(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

impl Ground {
    /// A tenant with groups, profiles and users; how long the users took.
    async fn settle(&self, users: usize) -> anyhow::Result<Duration> {
        let (core, tenant) = (&self.core, &self.tenant);
        let mut random = SystemRandom;
        let call = &mut Call::new(Actor::System, NOW, &mut random);
        let new = NewTenant { id: tenant.clone(), name: "Example".into(), settings: TenantSettings::default() };
        core.create_tenant(call, new).await?;
        let mut groups = Vec::new();
        for n in 0..GROUPS {
            groups.push(core.add_group(call, tenant, &format!("group {n}"), "").await?.id);
            if n > 0 {
                core.add_member(call, tenant, groups[n / 3], Principal::Group(groups[n])).await?;
            }
        }
        for n in 0..PROFILES {
            let category = Category::ALL[n % 4];
            let profile = NewProfile { category, name: format!("profile {n}"), ..NewProfile::default() };
            let profile = core.add_profile(call, tenant, profile).await?;
            core.assign_profile(call, tenant, profile.id, Principal::Group(groups[n * 7 % GROUPS])).await?;
        }
        let mut text = "email,name,groups\n".to_owned();
        for n in 0..users {
            text += &format!("user{n}@example.com,Person {n},group {};group {}\n", n % GROUPS, n * 31 % GROUPS);
        }
        let lines = bulk::read(&text).map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
        let begun = Instant::now();
        core.import_users(call, tenant, &lines).await?;
        Ok(begun.elapsed())
    }

    /// Everybody's id, page by page.
    async fn users(&self) -> anyhow::Result<Vec<EntityId>> {
        let (mut ids, mut page) = (Vec::new(), Page::first());
        loop {
            let users = self.core.users(&self.tenant, page).await?;
            ids.extend(users.iter().map(|user| user.id));
            let Some(next) = page.behind(&users, |user| user.id) else { return Ok(ids) };
            page = next;
        }
    }

    /// So many devices, as activation leaves them.
    async fn devices(&self, count: usize, users: &[EntityId]) -> anyhow::Result<Vec<EntityId>> {
        let mut made = Vec::with_capacity(count);
        while made.len() < count {
            let mut tenant = self.core.tenant(&self.tenant).await?;
            let expected = Some(tenant.revision);
            tenant.revision += 1;
            let batch = (count - made.len()).min(1000);
            let devices: Vec<_> = (0..batch).map(|n| self.device(users[(made.len() + n) % users.len()])).collect();
            made.extend(devices.iter().map(|device| device.id));
            let changes = devices.into_iter().map(Change::PutDevice).collect();
            self.core.store().commit(Commit { expected, tenant, changes, audit: Vec::new() }).await?;
        }
        Ok(made)
    }

    fn device(&self, user: EntityId) -> Device {
        let id = EntityId::from_random(hedgerow_runtime::clock::random());
        let certificate = CertificateRecord {
            issuer: String::new(),
            serial: id.to_string(),
            holder: id,
            role: Role::Device,
            fingerprint: String::new(),
            not_before: NOW,
            not_after: NOW.plus(3600),
        };
        Device {
            tenant: self.tenant.clone(),
            id,
            user,
            name: "laptop".into(),
            platform: "Linux".into(),
            certificate,
            state: DeviceState::Active,
            created: NOW,
            revoked: None,
            last_seen: None,
            obeys: None,
            activation: None,
        }
    }
}
