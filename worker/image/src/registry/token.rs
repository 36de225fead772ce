//! Answering a registry's challenge: by password, or by a token of its token server.
//!
//! Source: Docker registry documentation, "Token Authentication Specification" and "OAuth2 Token Authentication".

use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::{Response, StatusCode, Url, header};
use serde::Deserialize;

use super::{
    Credentials,
    challenge::{self, Challenge},
    session::{Purpose, Session, detail},
};
use crate::error::ImageError;

/// How we call ourselves to token servers.
const CLIENT_ID: &str = "rswarm";
/// A token is given up this long before it expires, for clocks and for the request that carries it.
const MARGIN: Duration = Duration::from_secs(10);
/// A token server answers at once or is not worth waiting for.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What to send as `Authorization`.
pub(super) struct Token {
    pub value: header::HeaderValue,
    /// `None` if its server does not say, or for a password.
    pub expires: Option<Instant>,
    /// What may be kept instead of the password.
    pub identity: Option<String>,
}

/// The answer to the challenge in `refused`.
pub(super) async fn answer(session: &Session<'_>, refused: &Response) -> Result<Token, ImageError> {
    if let Some(Credentials::RegistryToken(token)) = session.credentials {
        return header(session, &format!("Bearer {token}"), None, None);
    }
    let challenges: Vec<Challenge> = refused
        .headers()
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| challenge::parse(value.to_str().ok()?))
        .collect();
    let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    match (bearer.or(challenges.first()), session.credentials) {
        (Some(Challenge::Bearer { realm, service, scope, .. }), _) => {
            fetch(session, realm, service.as_deref(), scope.as_deref()).await
        }
        (Some(Challenge::Basic), Some(Credentials::Password { username, password })) => {
            let pair = base64::prelude::BASE64_STANDARD.encode(format!("{username}:{password}"));
            header(session, &format!("Basic {pair}"), None, None)
        }
        (Some(Challenge::Basic), _) => {
            let hint =
                format!("it wants a user name and a password: `rswarm login {}` first", session.registry);
            Err(session.unauthorized(&hint))
        }
        (None, _) => Err(session.unauthorized("it wants an unknown kind of authentication")),
    }
}

fn header(
    session: &Session<'_>,
    value: &str,
    expires: Option<Instant>,
    identity: Option<String>,
) -> Result<Token, ImageError> {
    let mut value = header::HeaderValue::from_str(value)
        .map_err(|_| session.unauthorized("the credential cannot be sent: it holds control characters"))?;
    value.set_sensitive(true);
    Ok(Token { value, expires, identity })
}

/// What the token shall allow: what the registry asks for, and what the whole talk needs, so that one token does.
fn scopes(session: &Session<'_>, asked: Option<&str>) -> Vec<String> {
    let own = match session.purpose {
        Purpose::Login => None,
        Purpose::Read => Some(format!("repository:{}:pull", session.repository)),
        Purpose::Write => Some(format!("repository:{}:pull,push", session.repository)),
    };
    let mut scopes: Vec<String> = own.into_iter().collect();
    let prefix = format!("repository:{}:", session.repository);
    for scope in asked.unwrap_or_default().split(' ').filter(|scope| !scope.is_empty()) {
        // Of our own repository we know better; others are those that blobs are mounted from.
        if !scope.starts_with(&prefix) && !scopes.iter().any(|known| known == scope) {
            scopes.push(scope.to_owned());
        }
    }
    scopes
}

async fn fetch(
    session: &Session<'_>,
    realm: &str,
    service: Option<&str>,
    asked: Option<&str>,
) -> Result<Token, ImageError> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
        refresh_token: Option<String>,
    }
    let mut url = Url::parse(realm).map_err(|_| session.unauthorized("it names no valid token server"))?;
    if session.credentials.is_some() && url.scheme() != "https" && session.base.starts_with("https://") {
        return Err(
            session.unauthorized("its token server is not reached by https, so the credential stays here")
        );
    }
    let scopes = scopes(session, asked);
    let request = if let Some(Credentials::IdentityToken(token)) = session.credentials {
        let mut form = url.clone();
        form.query_pairs_mut()
            .clear()
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", service.unwrap_or_default())
            .append_pair("client_id", CLIENT_ID)
            .append_pair("scope", &scopes.join(" "))
            .append_pair("refresh_token", token);
        session
            .client
            .post(url)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.query().unwrap_or_default().to_owned())
    } else {
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(service.map(|service| ("service", service)));
            query.extend_pairs(scopes.iter().map(|scope| ("scope", scope)));
            if let Some(Credentials::Password { username, .. }) = session.credentials {
                query.append_pair("account", username).append_pair("client_id", CLIENT_ID);
            }
            if session.purpose == Purpose::Login {
                query.append_pair("offline_token", "true");
            }
        }
        let request = session.client.get(url);
        match session.credentials {
            Some(Credentials::Password { username, password }) => {
                request.basic_auth(username, Some(password))
            }
            _ => request,
        }
    };
    let response = request.timeout(TIMEOUT).send().await.map_err(|e| session.unreachable(e))?;
    let status = response.status();
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST) {
        return Err(session.unauthorized(&detail(response).await));
    }
    if !status.is_success() {
        return Err(session.refusal(response).await);
    }
    let bytes = session.small_body(response, "the answer of the token server").await?;
    let answer: Option<Answer> = serde_json::from_slice(&bytes).ok();
    let (token, answer) = answer
        .and_then(|mut answer| Some((answer.token.take().or(answer.access_token.take())?, answer)))
        .ok_or_else(|| session.unauthorized("its token server sent no token"))?;
    let expires = answer.expires_in.and_then(|seconds| {
        // One that lasts beyond what a clock can say lasts for ever.
        Instant::now().checked_add(Duration::from_secs(seconds).saturating_sub(MARGIN))
    });
    header(session, &format!("Bearer {token}"), expires, answer.refresh_token)
}
