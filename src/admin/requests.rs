//! Which requests there are, and the forms of their answers. No I/O.

use super::query::Query;
use crate::bus::{AddressPattern, AdminCommand, QueueFilter, QueueOrder};
use crate::smtp::Address;
use crate::spool::routing_domain;
use hyper::{Method, StatusCode};

/// A request that is understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Request {
    Health,
    Ready,
    Metrics,
    Reload,
    Scheduler(AdminCommand),
}

/// Messages that a listing has unless it says otherwise.
const LIMIT_DEFAULT: usize = 1_000;
/// Messages that a listing can have.
const LIMIT_MAX: usize = 1_000_000;

impl Request {
    /// Finds the request, or the answer that refuses it.
    pub(super) fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Request, Answer> {
        let mut query = Query::parse(query).ok_or_else(|| Answer::bad_request("the parameters are not name=value"))?;
        let (wanted, request) = match path {
            "/healthz" => (Method::GET, Request::Health),
            "/readyz" => (Method::GET, Request::Ready),
            "/metrics" => (Method::GET, Request::Metrics),
            "/v1/reload" => (Method::POST, Request::Reload),
            _ => match path.strip_prefix("/v1/") {
                Some(path) => {
                    let (method, command) = command(path, &mut query)?;
                    (method, Request::Scheduler(command))
                }
                None => return Err(Answer::not_found("there is no such page")),
            },
        };
        // HEAD is GET whose answer goes without its body; who looks after health likes it (RFC 9110 section 9.1).
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        match query.left() {
            _ if *method != wanted => Err(Answer::wrong_method(&wanted)),
            Some(name) => Err(Answer::bad_request(&format!("there is no parameter {name:?} here"))),
            None => Ok(request),
        }
    }
}

/// Finds what is asked of the scheduler, and the method that it goes with.
fn command(path: &str, query: &mut Query) -> Result<(Method, AdminCommand), Answer> {
    Ok(match path {
        "summary" => (Method::GET, AdminCommand::QueueSummary),
        "queue" => {
            let limit = limit(query)?;
            (Method::GET, AdminCommand::QueueList { filter: filter(query)?, limit })
        }
        "queue/flush" => {
            let filter = filter(query)?;
            let all = filter == QueueFilter::default();
            let order = QueueOrder::Flush;
            (Method::POST, if all { AdminCommand::QueueFlush } else { AdminCommand::QueueOrder { order, filter } })
        }
        "queue/hold" => (Method::POST, ordered(QueueOrder::Hold, query)?),
        "queue/release" => (Method::POST, ordered(QueueOrder::Release, query)?),
        "queue/delete" => (Method::POST, ordered(QueueOrder::Delete, query)?),
        "queue/bounce" => {
            let reason = query.take("reason").unwrap_or_default();
            if reason.len() > REASON_BYTES_MAX {
                return Err(Answer::bad_request("the reason is too long"));
            }
            (Method::POST, ordered(QueueOrder::Bounce { reason }, query)?)
        }
        "sites" => (Method::GET, AdminCommand::SiteList),
        "sites/suspend" => (Method::POST, AdminCommand::SiteSuspend(site(query)?)),
        "sites/resume" => (Method::POST, AdminCommand::SiteResume(site(query)?)),
        "explain" => {
            let sender = address(query, "sender")?;
            let recipient = address(query, "recipient")?;
            let recipient = recipient.ok_or_else(|| Answer::bad_request("recipient=ADDRESS is needed"))?;
            (Method::GET, AdminCommand::Explain { recipient, sender })
        }
        _ => match path.strip_prefix("queue/") {
            Some(id) => {
                let id = id.parse().map_err(|_| Answer::bad_request("this is not a queue ID"))?;
                (Method::GET, AdminCommand::QueueShow(id))
            }
            None => return Err(Answer::not_found("there is no such page")),
        },
    })
}

/// An order changes the queue, so what it is about must be said.
fn ordered(order: QueueOrder, query: &mut Query) -> Result<AdminCommand, Answer> {
    let all = query.take("all").is_some_and(|all| all == "true");
    let filter = filter(query)?;
    if all != (filter == QueueFilter::default()) {
        let text = "say what: id, sender, recipient, domain or site, or else all=true alone";
        return Err(Answer::bad_request(text));
    }
    Ok(AdminCommand::QueueOrder { order, filter })
}

fn filter(query: &mut Query) -> Result<QueueFilter, Answer> {
    let mut pattern = |name: &str| match query.take(name) {
        None => Ok(None),
        Some(text) => AddressPattern::parse(&text).map(Some).ok_or_else(|| {
            Answer::bad_request(&format!("{name}: {text:?} is not an address; write a@example.com or @example.com"))
        }),
    };
    let (sender, recipient) = (pattern("sender")?, pattern("recipient")?);
    if recipient == Some(AddressPattern::Null) {
        return Err(Answer::bad_request("no recipient has a null address"));
    }
    let queue_id = match query.take("id") {
        None => None,
        Some(id) => Some(id.parse().map_err(|_| Answer::bad_request("this is not a queue ID"))?),
    };
    let domain = query.take("domain").map(|domain| routing_domain(domain.trim_start_matches('@')));
    Ok(QueueFilter { queue_id, sender, recipient, domain, site: query.take("site") })
}

fn address(query: &mut Query, name: &str) -> Result<Option<Address>, Answer> {
    let Some(text) = query.take(name) else { return Ok(None) };
    let parsed = Address::parse(text.as_bytes(), true);
    parsed.map(Some).map_err(|_| Answer::bad_request(&format!("{name}: {text:?} is not an address")))
}

fn site(query: &mut Query) -> Result<String, Answer> {
    let name = query.take("site").filter(|name| !name.is_empty() && name.len() <= SITE_BYTES_MAX);
    name.ok_or_else(|| Answer::bad_request("site=NAME is needed"))
}

fn limit(query: &mut Query) -> Result<usize, Answer> {
    let Some(number) = query.take("limit") else { return Ok(LIMIT_DEFAULT) };
    let limit = number.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| Answer::bad_request("limit=N can be 1 to 1000000"))
}

/// Octets of the text that a bounce gives as its reason.
const REASON_BYTES_MAX: usize = 500;
/// Octets of a site's name.
const SITE_BYTES_MAX: usize = 1_024;

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

    /// What is asked makes sense, and what it is about is wrong.
    pub(super) fn unprocessable(text: &str) -> Answer {
        Answer::text(StatusCode::UNPROCESSABLE_ENTITY, text)
    }

    pub(super) fn forbidden(text: &str) -> Answer {
        Answer::text(StatusCode::FORBIDDEN, text)
    }

    fn bad_request(text: &str) -> Answer {
        Answer::text(StatusCode::BAD_REQUEST, text)
    }

    fn wrong_method(wanted: &Method) -> Answer {
        let answer = Answer::text(StatusCode::METHOD_NOT_ALLOWED, &format!("use {wanted}"));
        let allow = if *wanted == Method::GET { "GET, HEAD".into() } else { wanted.to_string() };
        Answer { allow: Some(allow), ..answer }
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
        let filter = QueueFilter::default();
        let list = |limit| Ok(Request::Scheduler(AdminCommand::QueueList { filter: filter.clone(), limit }));
        check("GET", "/healthz", Ok(Request::Health));
        check("POST", "/v1/reload", Ok(Request::Reload));
        check("GET", "/v1/reload", Err(405));
        check("GET", "/v1/queue", list(1000));
        check("GET", "/v1/queue?limit=5", list(5));
        for query in ["limit=0", "limit=1000001", "limit=", "limit=x", "x=1", "x", "sender=x", "recipient=<>"] {
            check("GET", &format!("/v1/queue?{query}"), Err(400));
        }
        let id = "0000000G0001".parse().unwrap();
        check("GET", "/v1/queue/0000000G0001", Ok(Request::Scheduler(AdminCommand::QueueShow(id))));
        check("GET", "/v1/queue/zzz", Err(400));
        check("POST", "/v1/queue/flush", Ok(Request::Scheduler(AdminCommand::QueueFlush)));
        check("GET", "/v1/queue/flush", Err(405));
        check("POST", "/metrics", Err(405));
        let order = |order, filter| Ok(Request::Scheduler(AdminCommand::QueueOrder { order, filter }));
        let of_domain = QueueFilter { domain: Some("xn--bcher-kva.example".into()), ..QueueFilter::default() };
        check("POST", "/v1/queue/flush", Ok(Request::Scheduler(AdminCommand::QueueFlush)));
        check("POST", "/v1/queue/flush?domain=B%C3%BCcher.example", order(QueueOrder::Flush, of_domain.clone()));
        check("POST", "/v1/queue/hold?domain=%40b%C3%BCcher.example", order(QueueOrder::Hold, of_domain.clone()));
        check("POST", "/v1/queue/delete?all=true", order(QueueOrder::Delete, QueueFilter::default()));
        let bounce = QueueOrder::Bounce { reason: "gone for good".into() };
        check("POST", "/v1/queue/bounce?domain=b%C3%BCcher.example&reason=gone+for%20good", order(bounce, of_domain));
        let of_id = QueueFilter { queue_id: Some(id), ..QueueFilter::default() };
        check("POST", "/v1/queue/release?id=0000000G0001", order(QueueOrder::Release, of_id));
        for what in ["", "?all=false", "?all=true&domain=x.example", "?id=x", "?domian=x.example"] {
            check("POST", &format!("/v1/queue/delete{what}"), Err(400));
        }
        check("GET", "/v1/queue/delete?all=true", Err(405));
        check("GET", "/v1/sites", Ok(Request::Scheduler(AdminCommand::SiteList)));
        let name = "mx:a.example".to_owned();
        check("POST", "/v1/sites/suspend?site=mx%3Aa.example", Ok(Request::Scheduler(AdminCommand::SiteSuspend(name))));
        check("POST", "/v1/sites/resume", Err(400));
        check("GET", "/v1/explain?recipient=x", Err(400));
        check("GET", "/", Err(404));
        check("GET", "/v1/queue/../x", Err(400));
    }
}
