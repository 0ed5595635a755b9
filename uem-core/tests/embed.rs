//! The example of embedding is run as it stands, and stays short.

#![allow(clippy::print_stdout, reason = "what the example does")]

#[path = "../examples/embed.rs"]
mod embed;

#[test]
fn p18_another_program_embeds_the_domain_in_under_sixty_lines() {
    embed::main();
    assert!(include_str!("../examples/embed.rs").lines().count() < 60);
}
