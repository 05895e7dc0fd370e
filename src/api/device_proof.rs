//! `/api/devices/:id/challenge` and `/token`: another token for a device that has lost its own.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::error::{device_revoked, unauthorized};
use super::sessions::named_tenant;
use crate::accounts::devices::{CHALLENGE_LIFETIME, Proof, Proven, Signature};
use crate::api::App;
use crate::api::request::Request;
use crate::core::tenant::is_valid_name;
use crate::http::error::{Code, Error};
use crate::http::request::required;
use crate::http::response::{Response, json};

#[derive(Default, Deserialize)]
struct ChallengeBody {
    tenant: Option<String>,
}

/// `POST /api/devices/:id/challenge`: what the device signs; the body is optional. Devices that do not exist, or have no key,
/// get one as well.
///
/// # Errors
/// 404 for what cannot be the id of a device.
pub async fn challenge(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: ChallengeBody = request.json_or_default(app.config.server.body_bytes_max).await?;
    let tenant = device_tenant(&app, &request, body.tenant.as_deref())?;
    let device_id = request.param("id");
    let challenge = app.devices.challenge(&tenant, device_id).await?;
    json(
        StatusCode::CREATED,
        &json!({
            "challenge": challenge,
            "audience": app.config.public_url(),
            "device_id": device_id,
            "tenant_id": tenant,
            "expires_in": CHALLENGE_LIFETIME.as_secs(),
        }),
    )
}

#[derive(Deserialize)]
struct ProofBody {
    tenant: Option<String>,
    challenge: Option<String>,
    signature: Option<String>,
}

/// `POST /api/devices/:id/token`: another token, in place of the former one.
///
/// # Errors
/// 401 with the same text for an unknown device, one without a key, and a wrong signature; to a client with the key 401
/// `DEVICE_REVOKED`, and 409 for a challenge that has expired or was used; 429 after too many proofs of the device.
pub async fn renew_token(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: ProofBody = request.json(app.config.server.body_bytes_max).await?;
    let tenant = device_tenant(&app, &request, body.tenant.as_deref())?;
    let challenge = required("challenge", body.challenge)?;
    let signature = Signature::parse(&required("signature", body.signature)?)?;
    let (device_id, address) = (request.param("id"), request.address);
    let proof = Proof {
        tenant: &tenant,
        device_id,
        audience: &app.config.public_url(),
        challenge: &challenge,
        signature: &signature,
    };
    match app.devices.prove(proof, address).await? {
        Proven::Renewed { token, user } => json(
            StatusCode::CREATED,
            &json!({
                "device_id": device_id,
                "device_token": token,
                "user_id": user,
                "tenant_id": tenant,
            }),
        ),
        Proven::Revoked => Err(device_revoked()),
        Proven::Outdated => Err(Error::new(
            Code::CONFLICT,
            "the challenge has expired or was used: sign another one",
        )),
        Proven::Refused => {
            app.failed_logins.note_proof(address, &tenant, device_id).await;
            Err(unauthorized(
                "no device has this id, tenant and key, or the key has not signed this text: enroll the device again",
            ))
        }
    }
}

/// The tenant of the device. There need not be one of this name.
fn device_tenant(app: &App, request: &Request, in_body: Option<&str>) -> Result<String, Error> {
    let tenant = named_tenant(app, request, in_body)?;
    if is_valid_name(&tenant) {
        return Ok(tenant);
    }
    let text = "must be a letter and up to 47 of a-z, 0-9 and _";
    Err(Error::invalid("tenant", text))
}
