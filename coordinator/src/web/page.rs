//! The page, in one file, with all it needs in it.

use std::sync::LazyLock;

use axum::{http::header, response::IntoResponse};

const SCRIPTS: [&str; 5] = [
    include_str!("../../page/dom.js"),
    include_str!("../../page/table.js"),
    include_str!("../../page/chart.js"),
    include_str!("../../page/live.js"),
    include_str!("../../page/page.js"),
];

static PAGE: LazyLock<String> = LazyLock::new(|| {
    let page = include_str!("../../page/index.html").replace("{{script}}", &SCRIPTS.concat());
    page.replace("{{style}}", include_str!("../../page/style.css"))
});

/// It runs no script but its own, and loads nothing from elsewhere.
pub async fn page() -> impl IntoResponse {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; connect-src 'self'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (headers, PAGE.replace("{{nonce}}", &nonce))
}
