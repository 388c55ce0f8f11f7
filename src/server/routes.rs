//! The endpoints, their authorization, and their handlers. A test compares the table with the OpenAPI document.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::app::App;
use super::auth::Caller;
use super::service::{Admission, Exchange, Head, Pool, Request, Response, Service};
use super::{cancel, handlers};

/// One endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `GET /spec`.
    Spec,
    /// `POST /check`.
    Check,
    /// `POST /discover`.
    Discover,
    /// `POST /read`.
    Read,
    /// `GET /cancel`.
    Cancel,
    /// `GET /tasks`.
    Tasks,
    /// `GET /tasks/{taskId}`.
    Task,
    /// `GET /health`.
    Health,
    /// `GET /ready`.
    Ready,
    /// `GET /metrics`.
    Metrics,
    /// `GET /openapi.json`.
    OpenApi,
}

/// Method, path, endpoint.
pub const ROUTES: [(&str, &str, Endpoint); 11] = [
    ("GET", "/spec", Endpoint::Spec),
    ("POST", "/check", Endpoint::Check),
    ("POST", "/discover", Endpoint::Discover),
    ("POST", "/read", Endpoint::Read),
    ("GET", "/cancel", Endpoint::Cancel),
    ("GET", "/tasks", Endpoint::Tasks),
    ("GET", TASK_PATH, Endpoint::Task),
    ("GET", "/health", Endpoint::Health),
    ("GET", "/ready", Endpoint::Ready),
    ("GET", "/metrics", Endpoint::Metrics),
    ("GET", "/openapi.json", Endpoint::OpenApi),
];

/// The only path with a parameter.
const TASK_PATH: &str = "/tasks/{taskId}";
const TASK_PREFIX: &str = "/tasks/";

impl Endpoint {
    /// Whether it requires no token: the kubelet has none for its probes.
    fn is_open(self) -> bool {
        matches!(self, Self::Health | Self::Ready)
    }

    /// Whether it needs neither the database nor the cluster.
    fn is_fast(self) -> bool {
        matches!(self, Self::Health | Self::Ready | Self::Metrics | Self::OpenApi)
    }
}

/// The path of the table that matches a path.
fn template(path: &str) -> &str {
    match path.strip_prefix(TASK_PREFIX) {
        Some(id) if !id.is_empty() && !id.contains('/') => TASK_PATH,
        _ => path,
    }
}

/// The endpoint; the error is the response 404 or 405.
fn find(method: &str, path: &str) -> Result<Endpoint, Response> {
    let path = template(path);
    if let Some((_, _, endpoint)) = ROUTES.iter().find(|(m, p, _)| *m == method && *p == path) {
        return Ok(*endpoint);
    }
    match ROUTES.iter().find(|(_, p, _)| *p == path) {
        Some((allowed, ..)) => {
            Err(Response::error(405, &format!("this path requires {allowed}")).with_header("Allow", allowed))
        }
        None => Err(Response::error(404, "no such path: see GET /openapi.json")),
    }
}

/// The service behind the HTTP front.
pub struct Routes(pub Arc<App>);

impl Service for Routes {
    fn admit(&self, head: &Head) -> Result<Admission, Response> {
        let endpoint = find(&head.method, &head.target.path);
        // Also for unknown paths: an unauthorized client learns nothing.
        let caller = if endpoint.as_ref().is_ok_and(|endpoint| endpoint.is_open()) {
            Caller::default()
        } else {
            self.0.tokens.identify(head.header("authorization")).ok_or_else(|| {
                tracing::debug!(peer = %head.peer, "rejected a request without a valid token");
                Response::unauthorized()
            })?
        };
        let pool = if endpoint?.is_fast() { Pool::Fast } else { Pool::Blocking };
        Ok(Admission { pool, caller })
    }

    fn handle(&self, request: Request) -> Response {
        let app = &self.0;
        let Request { method, target, body, .. } = request;
        let query = &target.query;
        match find(&method, &target.path) {
            Err(response) => response,
            Ok(Endpoint::Health) => Response::json(200, &json!({"status": "pass", "ok": true})),
            Ok(Endpoint::Ready) => handlers::ready(app),
            Ok(Endpoint::Metrics) => {
                let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8".to_owned();
                Response { status: 200, content_type, headers: Vec::new(), body: app.metrics.text().into_bytes() }
            }
            Ok(Endpoint::OpenApi) => Response::json(200, handlers::openapi()),
            Ok(Endpoint::Spec) => handlers::spec(app, query),
            Ok(Endpoint::Check) => handlers::configured(app, crate::task::TaskKind::Check, query, body),
            Ok(Endpoint::Discover) => handlers::configured(app, crate::task::TaskKind::Discover, query, body),
            Ok(Endpoint::Read) => handlers::read(app, query, body),
            Ok(Endpoint::Cancel) => cancel::cancel(app, query),
            Ok(Endpoint::Tasks) => handlers::tasks(app, query),
            Ok(Endpoint::Task) => handlers::task(app, target.segments.last().map_or("", String::as_str), query),
        }
    }

    fn completed(&self, exchange: &Exchange<'_>) {
        let Exchange { method, path, caller, status, duration } = *exchange;
        let path = path.map(template).unwrap_or_default();
        // Bounded labels.
        let route = ROUTES.iter().find(|(_, p, _)| *p == path).map_or("other", |(_, p, _)| p);
        let method = ["GET", "POST"].into_iter().find(|known| Some(*known) == method).unwrap_or("other");
        self.0.metrics.request(method, route, status, duration);
        if duration > SLOW {
            let token = caller.and_then(Caller::name);
            tracing::warn!(method, route, status, token, ?duration, "slow request");
        }
    }
}

/// Slower requests are logged.
const SLOW: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::{Endpoint, ROUTES, find, handlers};
    use std::collections::BTreeSet;

    #[test]
    fn routes_are_the_paths_of_the_openapi_document() {
        let document = handlers::openapi();
        let described: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .expect("paths")
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().expect("an object").keys();
                methods.map(|method| (method.to_ascii_uppercase(), path.clone())).collect::<Vec<_>>()
            })
            .collect();
        let routes: BTreeSet<(String, String)> =
            ROUTES.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
        assert_eq!(described, routes);
    }

    #[test]
    fn paths_have_one_endpoint_and_one_method() {
        for (label, method, path, expected) in [
            ("plain", "GET", "/spec", Ok(Endpoint::Spec)),
            ("with an id", "GET", "/tasks/a%2Fb", Ok(Endpoint::Task)),
            ("without an id", "GET", "/tasks/", Err(404)),
            ("with two segments", "GET", "/tasks/a/b", Err(404)),
            ("another method", "POST", "/spec", Err(405)),
            ("case matters", "get", "/spec", Err(405)),
            ("unknown", "GET", "/Spec", Err(404)),
        ] {
            assert_eq!(find(method, path).map_err(|response| response.status), expected, "{label}");
        }
    }
}
