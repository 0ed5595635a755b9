//! A world in a box: the product's own processes and real counterparts, started on free loopback ports, for scenarios
//! named after the rows of the system's description. Everything ends with the test.
#![expect(clippy::missing_panics_doc, reason = "a test harness panics to fail the test")]

pub mod calendar;
pub mod chromium;
pub mod corporate;
pub mod curl;
pub mod field;
pub mod firewall;
pub mod fuzz;
pub mod gate;
pub mod inspector;
pub mod liar;
pub mod nginx;
pub mod office;
pub mod process;
pub mod ssh;
pub mod tap;
pub mod udp_tap;
pub mod work;
pub mod world;
