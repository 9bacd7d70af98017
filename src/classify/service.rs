//! The stage as a tower middleware: [`Classify`] decides, limits the body and calls the next stage.
//!
//! Nothing is boxed on the common path. Only a write whose small JSON body says whose conversations it
//! changes, or which one it goes on with, waits for that body first.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::body_limit::BodyLimit;
use super::decide::Classifier;
use super::{body_peek, user};
use crate::config::Config;
use crate::config::listen::BodyLimits;
use crate::types::outcome::{Known, RouteClass};
use crate::types::request::{CacheClass, ClassifiedRequest, Client, Decision};
use crate::types::{Body, Failure};

#[derive(Debug)]
struct Shared {
    classifier: Classifier,
    limits: BodyLimits,
}

/// Puts [`Classify`] before a service.
#[derive(Debug, Clone)]
pub struct ClassifyLayer {
    shared: Arc<Shared>,
}

impl ClassifyLayer {
    /// Reads `upstreams`, `routes` and `limits.body`.
    ///
    /// # Errors
    /// When `routes` cannot be carried out: a sentence that names the route.
    pub fn new(config: &Config) -> Result<Self, String> {
        let shared = Shared {
            classifier: Classifier::new(config)?,
            limits: config.limits.body.clone(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    pub(super) fn classifier(&self) -> &Classifier {
        &self.shared.classifier
    }

    pub(super) fn body_limit(&self, class: RouteClass) -> BodyLimit {
        BodyLimit::of(class, &self.shared.limits)
    }
}

impl<S> Layer<S> for ClassifyLayer {
    type Service = Classify<S>;

    fn layer(&self, inner: S) -> Classify<S> {
        Classify {
            inner,
            shared: self.shared.clone(),
        }
    }
}

/// Turns a request from the wire into a [`ClassifiedRequest`] for the next stage.
///
/// # Errors
/// `NoRoute` and `BodyTooLarge` of its own, with what is known in [`Failure::outcome`]; the failure of a body
/// that it waited for; else what the next stage says.
#[derive(Debug, Clone)]
pub struct Classify<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Classify<S>
where
    S: Service<ClassifiedRequest, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = ClassifyFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut decision, request) = match self.shared.classify(request) {
            Ok(classified) => classified,
            Err(failure) => return ClassifyFuture::failed(failure),
        };
        let peek = (decision.wants_user || decision.works.in_body)
            .then(|| body_peek::length(&request.parts.headers, &request.body));
        let Some(length) = peek.flatten() else {
            return ClassifyFuture::inner(self.inner.call(request.with(decision)));
        };
        // The clone takes the place of the service that was polled ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let Unclassified { parts, body, client } = request;
        ClassifyFuture::waiting(Box::pin(async move {
            let body = body_peek::read(body, length).await.map_err(|mut failure| {
                failure.outcome = failure.outcome.or(Some(decision.outcome()));
                failure
            })?;
            if let Some(user) = decision.wants_user.then(|| user::in_json(&body)).flatten() {
                decision.narrow_to(&user);
            }
            if decision.works.in_body {
                decision.works.goes_on_with(user::conversation_in_json(&body));
            }
            let body = Body::from(body);
            inner
                .call(Unclassified { parts, body, client }.with(decision))
                .await
        }))
    }
}

impl Shared {
    fn classify(&self, request: Request<Body>) -> Result<(Decision, Unclassified), Failure> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path();
        let mut decision = self
            .classifier
            .decide(&parts.method, path, parts.uri.query(), &parts.headers)?;
        if decision.cache != CacheClass::Never && !body.is_empty() {
            // A read with a body may be answered according to it.
            decision.never_cached();
        }
        if let Some(known) = parts.extensions.remove::<Known>() {
            known.set(decision.outcome());
        }
        let limit = BodyLimit::of(decision.class, &self.limits);
        let body = limit.apply(&parts.headers, body).map_err(|mut failure| {
            failure.outcome = Some(decision.outcome());
            failure
        })?;
        let client = parts.extensions.get::<Client>().copied().unwrap_or(NOBODY);
        Ok((decision, Unclassified { parts, body, client }))
    }
}

/// Whom a request comes from that no listener took in: believed in nothing.
const NOBODY: Client = Client {
    peer: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
    tls: false,
    trusted: false,
};

/// The half of a [`ClassifiedRequest`] that is not decided.
struct Unclassified {
    parts: Parts,
    body: Body,
    client: Client,
}

impl Unclassified {
    fn with(self, decision: Decision) -> ClassifiedRequest {
        ClassifiedRequest {
            parts: self.parts,
            body: self.body,
            client: self.client,
            decision,
        }
    }
}

type Answer = Result<Response<Body>, Failure>;

pin_project! {
    /// The answer of [`Classify`].
    pub struct ClassifyFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateOf]
    enum State<F> {
        Inner { #[pin] future: F },
        Waiting { future: Pin<Box<dyn Future<Output = Answer> + Send>> },
        Failed { failure: Option<Failure> },
    }
}

impl<F> ClassifyFuture<F> {
    fn inner(future: F) -> Self {
        Self {
            state: State::Inner { future },
        }
    }

    fn waiting(future: Pin<Box<dyn Future<Output = Answer> + Send>>) -> Self {
        Self {
            state: State::Waiting { future },
        }
    }

    fn failed(failure: Failure) -> Self {
        Self {
            state: State::Failed {
                failure: Some(failure),
            },
        }
    }
}

impl<F: Future<Output = Answer>> Future for ClassifyFuture<F> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        match self.project().state.project() {
            StateOf::Inner { future } => future.poll(cx),
            StateOf::Waiting { future } => future.as_mut().poll(cx),
            StateOf::Failed { failure } => failure
                .take()
                .map_or(Poll::Pending, |failure| Poll::Ready(Err(failure))),
        }
    }
}
