//! Who asks: a digest of everything in a request that selects whose answer it gets.
//!
//! What is not sure to be without effect goes into the digest: a principal too many costs a miss, one too
//! few shows somebody else's answer. Fields whose names have a `_` are not looked at; dify-api never sees
//! them either.

use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, PROXY_AUTHORIZATION};

use super::row::Who;
use crate::types::ids::Principal;

const X_APP_CODE: HeaderName = HeaderName::from_static("x-app-code");
const X_APP_PASSPORT: HeaderName = HeaderName::from_static("x-app-passport");
const X_CSRF_TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");

/// Every field that carries a credential or says whom one is for.
static CREDENTIALS: [HeaderName; 5] = [AUTHORIZATION, COOKIE, X_APP_CODE, X_APP_PASSPORT, X_CSRF_TOKEN];

/// What else may carry a credential on a path that is not Dify's as we know it, with all of the above.
static FOREIGN: [HeaderName; 10] = [
    AUTHORIZATION,
    COOKIE,
    X_APP_CODE,
    X_APP_PASSPORT,
    X_CSRF_TOKEN,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-inner-api-key"),
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("x-access-token"),
];

/// Only this field counts under `/v1`.
static BEARER: [HeaderName; 1] = [AUTHORIZATION];

/// Whose answer a request of kind `who` gets; `None` when that cannot be told.
pub(crate) fn principal(who: Who, headers: &HeaderMap) -> Option<Principal> {
    Some(match selection(who, headers)? {
        Selection::Everybody => Principal::PUBLIC,
        Selection::Fields(domain, names) => digest(domain, names, headers),
    })
}

/// The names of the fields in `headers` that the principal is a digest of; none for everybody's.
pub(super) fn made_of(who: Who, headers: &HeaderMap) -> Option<Vec<&'static HeaderName>> {
    Some(match selection(who, headers)? {
        Selection::Everybody => Vec::new(),
        Selection::Fields(_, names) => names.iter().filter(|name| headers.contains_key(*name)).collect(),
    })
}

/// What in a request says whose answer it gets.
enum Selection {
    /// Nothing: everybody gets the same.
    Everybody,
    /// These fields. With a domain, so that different sets never give the same digest.
    Fields(u8, &'static [HeaderName]),
}

fn selection(who: Who, headers: &HeaderMap) -> Option<Selection> {
    use Selection::{Everybody, Fields};
    match who {
        Who::Bearer => {
            let mut keys = headers.get_all(AUTHORIZATION).iter();
            let one = keys.next().is_some_and(|key| !key.is_empty()) && keys.next().is_none();
            one.then_some(Fields(b'b', &BEARER))
        }
        Who::Web => has_passport(headers).then_some(Fields(b'c', &CREDENTIALS)),
        Who::Console => sends_any(headers).then_some(Fields(b'c', &CREDENTIALS)),
        Who::Unknown if FOREIGN.iter().any(|name| headers.contains_key(name)) => Some(Fields(b'u', &FOREIGN)),
        Who::Open if sends_any(headers) => Some(Fields(b'c', &CREDENTIALS)),
        Who::Open | Who::Unknown => Some(Everybody),
    }
}

fn sends_any(headers: &HeaderMap) -> bool {
    CREDENTIALS.iter().any(|name| headers.contains_key(name))
}

/// The cookie is called `passport-` and the app's code, perhaps behind `__Host-`. Finding the word elsewhere
/// does no harm: the whole `Cookie` field is in the digest.
fn has_passport(headers: &HeaderMap) -> bool {
    headers
        .get(X_APP_PASSPORT)
        .is_some_and(|passport| !passport.is_empty())
        || headers
            .get_all(COOKIE)
            .iter()
            .any(|cookies| memchr::memmem::find(cookies.as_bytes(), b"passport-").is_some())
}

/// Name by name in a fixed order: how many values there are, then each with its length. Cookies are taken
/// as whole fields, for gunicorn joins several of them in a way in which a cookie can swallow the next.
fn digest(domain: u8, names: &[HeaderName], headers: &HeaderMap) -> Principal {
    let mut hash = blake3::Hasher::new();
    hash.update(b"dify-edge principal 1");
    hash.update(&[domain]);
    for name in names {
        let values = headers.get_all(name);
        hash.update(&(values.iter().count() as u64).to_le_bytes());
        for value in values {
            hash.update(&(value.len() as u64).to_le_bytes());
            hash.update(value.as_bytes());
        }
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    Principal(first)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            })
    }

    #[test]
    fn without_exactly_one_key_the_service_api_knows_nobody() {
        let one = headers(&[(AUTHORIZATION, "Bearer app-1")]);
        assert!(principal(Who::Bearer, &one).is_some());
        for nobody in [
            headers(&[]),
            headers(&[(AUTHORIZATION, "")]),
            headers(&[(AUTHORIZATION, "Bearer app-1"), (AUTHORIZATION, "Bearer app-1")]),
            headers(&[(COOKIE, "x-token=app-1"), (X_APP_PASSPORT, "p")]),
        ] {
            assert_eq!(principal(Who::Bearer, &nobody), None, "{nobody:?}");
        }
    }

    #[test]
    fn the_key_counts_exactly_as_it_was_sent() {
        let spellings = [
            "Bearer app-1",
            "bearer app-1",
            "Bearer  app-1",
            "Bearer app-1 ",
            "Bearer app-10",
        ];
        let all: std::collections::HashSet<_> = spellings
            .iter()
            .map(|key| principal(Who::Bearer, &headers(&[(AUTHORIZATION, key)])).unwrap())
            .collect();
        assert_eq!(all.len(), spellings.len());
    }

    #[test]
    fn cookies_do_not_part_the_holders_of_one_key() {
        let plain = headers(&[(AUTHORIZATION, "Bearer app-1")]);
        let cookie = headers(&[(AUTHORIZATION, "Bearer app-1"), (COOKIE, "x-token=app-1")]);
        assert_eq!(principal(Who::Bearer, &plain), principal(Who::Bearer, &cookie));
    }

    #[test]
    fn a_passport_cookie_parts_visitors_whose_passport_header_is_the_same() {
        let of = |cookie: &str| {
            let fields = [(X_APP_CODE, "code"), (X_APP_PASSPORT, "same"), (COOKIE, cookie)];
            principal(Who::Web, &headers(&fields)).unwrap()
        };
        assert_ne!(of("passport-code=a"), of("passport-code=b"));
        assert_ne!(of("passport-code=a"), of("locale=en"));
        assert_ne!(of("access_token=1"), of("access_token=2"));
    }

    #[test]
    fn a_visitor_without_a_passport_is_nobody() {
        for nobody in [
            headers(&[(X_APP_CODE, "code")]),
            headers(&[(X_APP_CODE, "code"), (COOKIE, "locale=en")]),
            headers(&[(X_APP_CODE, "code"), (X_APP_PASSPORT, "")]),
            headers(&[(AUTHORIZATION, "Bearer x")]),
        ] {
            assert_eq!(principal(Who::Web, &nobody), None, "{nobody:?}");
        }
        assert!(principal(Who::Web, &headers(&[(COOKIE, "a=b; passport-code=t")])).is_some());
        assert!(principal(Who::Web, &headers(&[(COOKIE, "__Host-passport-code=t")])).is_some());
    }

    #[test]
    fn a_cookie_that_swallows_the_next_field_is_not_the_visitor_whose_passport_it_swallowed() {
        let passport = (X_APP_PASSPORT, "mine");
        let two = headers(&[passport.clone(), (COOKIE, "a=1"), (COOKIE, "passport-code=yours")]);
        let one = headers(&[passport.clone(), (COOKIE, "a=1; passport-code=yours")]);
        assert_ne!(principal(Who::Web, &two), principal(Who::Web, &one));
    }

    #[test]
    fn everybody_is_one_principal_only_while_no_credential_is_sent() {
        assert_eq!(principal(Who::Open, &headers(&[])), Some(Principal::PUBLIC));
        assert_eq!(principal(Who::Console, &headers(&[])), None);
        for name in CREDENTIALS.clone() {
            let sent = headers(&[(name, "v")]);
            assert_ne!(principal(Who::Open, &sent), Some(Principal::PUBLIC));
            assert!(principal(Who::Console, &sent).is_some());
        }
    }

    #[test]
    fn names_with_an_underscore_select_nothing() {
        let mut sent = headers(&[]);
        sent.insert("x_app_passport", HeaderValue::from_static("v"));
        assert_eq!(principal(Who::Web, &sent), None);
        assert_eq!(principal(Who::Open, &sent), Some(Principal::PUBLIC));
    }

    #[test]
    fn a_principal_shows_no_credential() {
        let sent = headers(&[(AUTHORIZATION, "Bearer app-secret")]);
        let shown = format!("{:?}", principal(Who::Bearer, &sent));
        assert!(!shown.contains("secret"), "{shown}");
        assert!(shown.len() < 40, "{shown}");
    }

    fn fields() -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
        let value = prop::collection::vec(prop_oneof![Just(b'a'), Just(b','), 0x20_u8..0x7f], 0..6);
        prop::collection::vec((0..CREDENTIALS.len(), value), 0..6)
    }

    /// What the digest must tell apart: the values of each name, in order.
    fn selected(map: &HeaderMap) -> Vec<Vec<Vec<u8>>> {
        CREDENTIALS
            .iter()
            .map(|name| map.get_all(name).iter().map(|v| v.as_bytes().to_vec()).collect())
            .collect()
    }

    fn map_of(fields: &[(usize, Vec<u8>)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(&CREDENTIALS[*name], HeaderValue::from_bytes(value).unwrap());
        }
        map
    }

    proptest! {
        #[test]
        fn principals_are_equal_exactly_when_every_credential_is(one in fields(), other in fields()) {
            let (one, other) = (map_of(&one), map_of(&other));
            for who in [Who::Web, Who::Console, Who::Open] {
                if let (Some(a), Some(b)) = (principal(who, &one), principal(who, &other)) {
                    prop_assert_eq!(a == b, selected(&one) == selected(&other));
                }
            }
            if let (Some(a), Some(b)) = (principal(Who::Bearer, &one), principal(Who::Bearer, &other)) {
                prop_assert_eq!(a == b, one[AUTHORIZATION] == other[AUTHORIZATION]);
            }
        }

        #[test]
        fn any_changed_byte_of_a_credential_changes_the_principal(
            sent in fields(), which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()
        ) {
            prop_assume!(sent.iter().any(|(_, value)| !value.is_empty()));
            let mut changed = sent.clone();
            let filled: Vec<_> = (0..sent.len()).filter(|i| !sent[*i].1.is_empty()).collect();
            let value = &mut changed[filled[which.index(filled.len())]].1;
            let at = at.index(value.len());
            value[at] = if value[at] == b'z' { b'y' } else { b'z' };
            prop_assert_ne!(principal(Who::Open, &map_of(&sent)), principal(Who::Open, &map_of(&changed)));
        }
    }
}
