//! The endpoints, their authorization, and their handlers. A test compares the table with the OpenAPI document.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::app::App;
use super::auth::{Caller, Unidentified, Verb};
use super::service::{Action, Admission, Exchange, Head, Pool, Request, Response, Service};
use super::{authorize, cancel, handlers, params};
use crate::task::TaskKind;

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

/// A row of the routing table.
pub struct Route {
    method: &'static str,
    path: &'static str,
    endpoint: Endpoint,
    body: Body,
    response: Size,
}

/// How much body an endpoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    None,
    /// JSON documents, up to SYNCCTL_HTTP_MAX_BODY_MI.
    Documents,
}

/// How large a response may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// Some KiB.
    Small,
    /// A number of items that the query limits.
    Items { parameter: &'static str, default: u32, bytes_each: usize },
}

/// A log line of 4000 characters, some of them escaped.
const LOG_LINES: Size = Size::Items { parameter: "logs", default: params::DEFAULT_LOG_LINES, bytes_each: 8 << 10 };
/// A task with the streams that a list shows.
const TASKS: Size = Size::Items { parameter: "limit", default: params::DEFAULT_TASKS, bytes_each: 80 << 10 };

const fn route(method: &'static str, path: &'static str, endpoint: Endpoint, body: Body, response: Size) -> Route {
    Route { method, path, endpoint, body, response }
}

/// Every endpoint with what its requests and responses may take.
static ROUTES: [Route; 11] = [
    route("GET", "/spec", Endpoint::Spec, Body::None, Size::Small),
    route("POST", "/check", Endpoint::Check, Body::Documents, Size::Small),
    route("POST", "/discover", Endpoint::Discover, Body::Documents, Size::Small),
    route("POST", "/read", Endpoint::Read, Body::Documents, Size::Small),
    route("GET", "/cancel", Endpoint::Cancel, Body::None, Size::Small),
    route("GET", "/tasks", Endpoint::Tasks, Body::None, TASKS),
    route("GET", TASK_PATH, Endpoint::Task, Body::None, LOG_LINES),
    route("GET", "/health", Endpoint::Health, Body::None, Size::Small),
    route("GET", "/ready", Endpoint::Ready, Body::None, Size::Small),
    route("GET", "/metrics", Endpoint::Metrics, Body::None, Size::Small),
    route("GET", "/openapi.json", Endpoint::OpenApi, Body::None, Size::Small),
];

/// The only path with a parameter.
const TASK_PATH: &str = "/tasks/{taskId}";
const TASK_PREFIX: &str = "/tasks/";

impl Endpoint {
    /// The response of a probe. Probes require no token: the kubelet has none.
    fn probe(self, app: &App) -> Option<Response> {
        match self {
            Self::Health => Some(Response::json(200, &json!({"status": "pass", "ok": true}))),
            Self::Ready => Some(handlers::ready(app)),
            _ => None,
        }
    }

    /// The verb that a caller needs; `None`: any token.
    fn verb(self) -> Option<Verb> {
        match self {
            Self::Health | Self::Ready | Self::OpenApi => None,
            Self::Spec => Some(Verb::Spec),
            Self::Check => Some(Verb::Check),
            Self::Discover => Some(Verb::Discover),
            Self::Read => Some(Verb::Read),
            Self::Cancel => Some(Verb::Cancel),
            Self::Tasks | Self::Task => Some(Verb::Tasks),
            Self::Metrics => Some(Verb::Metrics),
        }
    }

    /// Whether it needs neither the database nor the cluster.
    fn is_fast(self) -> bool {
        matches!(self, Self::Metrics | Self::OpenApi)
    }
}

impl Size {
    /// Bytes of the response to this query at most, roughly.
    fn bytes(self, query: &[(String, String)]) -> usize {
        let Self::Items { parameter, default, bytes_each } = self else { return 0 };
        let given = query.iter().find(|(name, _)| name == parameter).and_then(|(_, value)| value.parse::<u32>().ok());
        (given.unwrap_or(default) as usize).saturating_mul(bytes_each)
    }
}

/// The path of the table that matches a path.
fn template(path: &str) -> &str {
    match path.strip_prefix(TASK_PREFIX) {
        Some(id) if !id.is_empty() && !id.contains('/') => TASK_PATH,
        _ => path,
    }
}

/// The route; the error is the response 404 or 405.
fn find(method: &str, path: &str) -> Result<&'static Route, Response> {
    let path = template(path);
    if let Some(route) = ROUTES.iter().find(|route| route.method == method && route.path == path) {
        return Ok(route);
    }
    match ROUTES.iter().find(|route| route.path == path) {
        Some(Route { method, .. }) => {
            Err(Response::error(405, &format!("this path requires {method}")).with_header("Allow", method))
        }
        None => Err(Response::error(404, "no such path: see GET /openapi.json")),
    }
}

/// The service behind the HTTP front.
pub struct Routes(pub Arc<App>);

impl Routes {
    /// The caller, by its token and within its limit of requests.
    fn identify(&self, head: &Head) -> Result<Caller, Response> {
        let caller = self.0.tokens.identify(head.header("authorization")).map_err(|error| match error {
            Unidentified::Unknown => {
                tracing::debug!(peer = %head.peer, "rejected a request without a valid token");
                Response::unauthorized()
            }
            Unidentified::Expired(token) => {
                tracing::warn!(peer = %head.peer, token, "rejected a request with an expired token");
                Response::unauthorized_because("the token has expired")
            }
        })?;
        caller.count_request().map_err(|seconds| {
            let token = caller.name().unwrap_or_default();
            tracing::debug!(peer = %head.peer, token, "rejected a request beyond requestsPerMinute");
            self.0.metrics.token_request(token, 429);
            Response::too_many(&format!("token {token:?} has made its requestsPerMinute: wait {seconds} s"), seconds)
        })?;
        Ok(caller)
    }
}

impl Service for Routes {
    fn admit(&self, head: &Head) -> Result<Admission, Response> {
        let app = &self.0;
        let route = find(&head.method, &head.target.path);
        if let Some(response) = route.as_ref().ok().and_then(|route| route.endpoint.probe(app)) {
            return Ok(Admission { body_bytes: 0, action: Action::Respond(response) });
        }
        if app.serve.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()) && !head.has_certificate {
            return Err(Response::error(403, "a client certificate is required"));
        }
        // Also for unknown paths: an unauthorized client learns nothing.
        let caller = self.identify(head)?;
        let Route { endpoint, body, response, .. } = route?;
        if let Some(verb) = endpoint.verb() {
            caller.check_verb(verb).map_err(|denial| {
                app.metrics.token_request(caller.name().unwrap_or_default(), 403);
                authorize::denied(&caller, &denial)
            })?;
        }
        let body_bytes = match body {
            Body::None => 0,
            Body::Documents => app.serve.max_body,
        };
        let pool = if endpoint.is_fast() { Pool::Fast } else { Pool::Blocking };
        let response_bytes = response.bytes(&head.target.query);
        Ok(Admission { body_bytes, action: Action::Handle { pool, response_bytes, caller } })
    }

    fn handle(&self, request: Request) -> Response {
        let app = &self.0;
        let Request { method, target, body, caller } = request;
        let query = &target.query;
        let endpoint = match find(&method, &target.path) {
            Ok(route) => route.endpoint,
            Err(response) => return response,
        };
        match endpoint {
            Endpoint::Health | Endpoint::Ready => endpoint.probe(app).unwrap_or_else(|| handlers::ready(app)),
            Endpoint::Metrics => {
                let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8".to_owned();
                Response { status: 200, content_type, headers: Vec::new(), body: app.metrics.text().into_bytes() }
            }
            Endpoint::OpenApi => Response::json(200, handlers::openapi()),
            Endpoint::Spec => handlers::spec(app, &caller, query),
            Endpoint::Check => handlers::configured(app, &caller, TaskKind::Check, query, body),
            Endpoint::Discover => handlers::configured(app, &caller, TaskKind::Discover, query, body),
            Endpoint::Read => handlers::read(app, &caller, query, body),
            Endpoint::Cancel => cancel::cancel(app, &caller, query),
            Endpoint::Tasks => handlers::tasks(app, &caller, query),
            Endpoint::Task => {
                let task_id = target.segments.last().map_or("", String::as_str);
                handlers::task(app, &caller, task_id, query)
            }
        }
    }

    fn completed(&self, exchange: &Exchange<'_>) {
        let Exchange { method, path, caller, status, duration } = *exchange;
        let path = path.map(template).unwrap_or_default();
        // Bounded labels.
        let route = ROUTES.iter().find(|route| route.path == path).map_or("other", |route| route.path);
        let method = ["GET", "POST"].into_iter().find(|known| Some(*known) == method).unwrap_or("other");
        self.0.metrics.request(method, route, status, duration);
        let token = caller.and_then(Caller::name);
        if let Some(token) = token {
            self.0.metrics.token_request(token, status);
        }
        if duration > SLOW {
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
            ROUTES.iter().map(|route| (route.method.to_owned(), route.path.to_owned())).collect();
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
            assert_eq!(
                find(method, path).map(|route| route.endpoint).map_err(|response| response.status),
                expected,
                "{label}"
            );
        }
    }
}
