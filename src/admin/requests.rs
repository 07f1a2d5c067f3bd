//! Which requests there are, and the forms of their answers. No I/O.

use crate::bus::AdminCommand;
use hyper::{Method, StatusCode};

/// A request that is understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Request {
    Health,
    Ready,
    Metrics,
    Scheduler(AdminCommand),
}

/// Messages that a listing has unless it says otherwise.
const LIMIT_DEFAULT: usize = 1_000;
/// Messages that a listing can have.
const LIMIT_MAX: usize = 1_000_000;

impl Request {
    /// Finds the request, or the answer that refuses it.
    pub(super) fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Request, Answer> {
        let (wanted, request) = match path {
            "/healthz" => (Method::GET, Request::Health),
            "/readyz" => (Method::GET, Request::Ready),
            "/metrics" => (Method::GET, Request::Metrics),
            "/v1/summary" => (Method::GET, Request::Scheduler(AdminCommand::QueueSummary)),
            "/v1/queue" => (Method::GET, Request::Scheduler(AdminCommand::QueueList { limit: limit(query)? })),
            "/v1/queue/flush" => (Method::POST, Request::Scheduler(AdminCommand::QueueFlush)),
            _ => match path.strip_prefix("/v1/queue/") {
                Some(id) => {
                    let id = id.parse().map_err(|_| Answer::bad_request("this is not a queue ID"))?;
                    (Method::GET, Request::Scheduler(AdminCommand::QueueShow(id)))
                }
                None => return Err(Answer::not_found("there is no such page")),
            },
        };
        if *method == wanted { Ok(request) } else { Err(Answer::wrong_method(&wanted)) }
    }
}

fn limit(query: Option<&str>) -> Result<usize, Answer> {
    let Some(query) = query else { return Ok(LIMIT_DEFAULT) };
    query
        .strip_prefix("limit=")
        .and_then(|number| number.parse().ok())
        .filter(|limit| (1..=LIMIT_MAX).contains(limit))
        .ok_or_else(|| Answer::bad_request("the only parameter is limit=N, N from 1 to 1000000"))
}

/// An answer before it becomes HTTP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: String,
    /// The method that the path has, where another was used.
    pub allow: Option<String>,
}

const TEXT: &str = "text/plain; charset=utf-8";

impl Answer {
    fn text(status: StatusCode, text: &str) -> Answer {
        Answer { status, content_type: TEXT, body: format!("{text}\n"), allow: None }
    }

    /// `ok`, or 503 with one line for each thing that is wrong.
    pub(super) fn of_checks(wrong: Vec<String>) -> Answer {
        if wrong.is_empty() {
            Answer::text(StatusCode::OK, "ok")
        } else {
            Answer::text(StatusCode::SERVICE_UNAVAILABLE, &wrong.join("\n"))
        }
    }

    pub(super) fn metrics(text: String) -> Answer {
        let content_type = "text/plain; version=0.0.4; charset=utf-8";
        Answer { status: StatusCode::OK, content_type, body: text, allow: None }
    }

    pub(super) fn json(body: String) -> Answer {
        Answer { status: StatusCode::OK, content_type: "application/json", body, allow: None }
    }

    pub(super) fn not_found(text: &str) -> Answer {
        Answer::text(StatusCode::NOT_FOUND, text)
    }

    pub(super) fn unavailable(text: &str) -> Answer {
        Answer::text(StatusCode::SERVICE_UNAVAILABLE, text)
    }

    pub(super) fn forbidden(text: &str) -> Answer {
        Answer::text(StatusCode::FORBIDDEN, text)
    }

    fn bad_request(text: &str) -> Answer {
        Answer::text(StatusCode::BAD_REQUEST, text)
    }

    fn wrong_method(wanted: &Method) -> Answer {
        let answer = Answer::text(StatusCode::METHOD_NOT_ALLOWED, &format!("use {wanted}"));
        Answer { allow: Some(wanted.to_string()), ..answer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, target: &str, expected: Result<Request, u16>) {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let parsed = Request::parse(&Method::from_bytes(method.as_bytes()).unwrap(), path, query);
        assert_eq!(parsed.map_err(|answer| answer.status.as_u16()), expected, "{method} {target}");
    }

    #[test]
    fn requests_are_found_or_refused() {
        let list = |limit| Ok(Request::Scheduler(AdminCommand::QueueList { limit }));
        check("GET", "/healthz", Ok(Request::Health));
        check("GET", "/v1/queue", list(1000));
        check("GET", "/v1/queue?limit=5", list(5));
        for query in ["limit=0", "limit=1000001", "limit=", "limit=x", "x=1", ""] {
            check("GET", &format!("/v1/queue?{query}"), Err(400));
        }
        let id = "0000000G0001".parse().unwrap();
        check("GET", "/v1/queue/0000000G0001", Ok(Request::Scheduler(AdminCommand::QueueShow(id))));
        check("GET", "/v1/queue/zzz", Err(400));
        check("POST", "/v1/queue/flush", Ok(Request::Scheduler(AdminCommand::QueueFlush)));
        check("GET", "/v1/queue/flush", Err(405));
        check("POST", "/metrics", Err(405));
        check("GET", "/", Err(404));
        check("GET", "/v1/queue/../x", Err(400));
    }
}
