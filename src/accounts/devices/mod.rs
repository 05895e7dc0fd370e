//! Devices of users.
//!
//! The directory `posduif.devices` holds the SHA-256 of each token. A checked token is cached for
//! `auth.device_cache_seconds`, so that a request costs no statement. Revoking a device or disabling a user invalidates the
//! cache: at once in the same process, through the log on other nodes.
//!
//! A device that has lost its token gets another one by its key ([`Devices::prove`]).

mod add;
mod authentication;
mod cache;
mod challenge;
mod device;
mod id;
mod key;
mod login;
mod proof;
mod revocation;
mod token;

pub use self::add::NewDevice;
pub use self::authentication::{DevicePrincipal, Devices};
pub use self::challenge::CHALLENGE_LIFETIME;
pub(crate) use self::device::usable;
pub use self::device::{Device, DeviceType, Filter, Update, exists, get, list, revoke, revoke_by, seen, update};
pub use self::id::check_device_id;
pub use self::key::{AuthKey, Signature};
pub use self::login::{DeviceInfo, RegisteredDevice};
pub use self::proof::{Proof, Proven};
pub(in crate::accounts) use self::token::Token;
pub use self::token::TokenHash;
