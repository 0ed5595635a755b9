//! The tunnel's DTLS (`hedgerow_secure_connect::session::dtls::Dtls`) against other implementations: what both ends of
//! ours agree upon may still not be DTLS. See README.md.

#![cfg(test)]

mod dtls12;
mod ours;
mod path;
mod tenant;
mod wolfssl;
