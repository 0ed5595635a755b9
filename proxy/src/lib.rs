//! Access rules, dialling, serving SOCKS5 and HTTP to local applications, publishing servers inside, and moving bytes
//! between a connection and a stream of an end-to-end session.

pub mod acl;
pub mod dial;
pub mod http;
pub mod listen;
pub mod publish;
pub mod socks;
pub mod splice;
pub mod target;
pub mod tell;

#[cfg(test)]
mod testing;
