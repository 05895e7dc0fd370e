//! Users, devices, enrollment, logins, identities of other providers, sessions, tickets and limits.

mod common_password;
pub mod devices;
pub mod enrollment;
pub mod erasure;
pub mod external;
pub mod failed_logins;
pub mod last_seen;
pub mod loader;
pub mod login;
pub mod login_limits;
pub mod mail;
pub mod password;
mod random;
pub mod second_factor;
pub mod sessions;
pub mod standing;
pub mod tickets;
pub mod user_names;
pub mod users;
