//! Pages for people.

use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse, Response};

use crate::extract::Id;
use crate::problem::{Kind, Problem};

const INDEX: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<title>Baton</title>
<h1>Baton</h1>
<p>Coordinates teams of AI agents. The API is described by <a href=\"/openapi.json\">an OpenAPI document</a>.</p>
<ul>
<li><a href=\"/v1/workflows\">workflows</a>, <a href=\"/v1/runs\">runs</a>, <a href=\"/v1/agents\">agents</a>,
<a href=\"/v1/pools\">pools</a>, <a href=\"/v1/leases\">leases</a>, <a href=\"/v1/alerts\">alerts</a>,
<a href=\"/v1/spending?by=stage\">spending</a>,
<a href=\"/v1/placement\">placement</a>, <a href=\"/v1/services\">services</a></li>
<li><a href=\"/readyz\">readiness</a>, <a href=\"/metrics\">metrics</a></li>
</ul>
</html>
";

pub(crate) async fn index() -> Html<&'static str> {
    Html(INDEX)
}

/// Explains what the `type` of a problem points to.
pub(crate) async fn problem(Id(code): Id<String>) -> Result<Response, Problem> {
    let Some(kind) = Kind::of_code(&code) else {
        return Err(Problem::new(Kind::NotFound, format!("there is no kind of problem {code:?}")));
    };
    let text = format!("{}\n\n{}\n\ncode: {code}\nstatus: {}\n", kind.title(), kind.meaning(), kind.status());
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}
