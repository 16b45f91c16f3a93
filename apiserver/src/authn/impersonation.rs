//! Acting as somebody else ("User impersonation"): the headers `Impersonate-User`, `-Group`, `-Uid` and `-Extra-<key>`.
//!
//! Owns what the headers mean, and which permissions they need: the verb `impersonate` on each part of the other
//! identity. Never widens: what is not asked for is not taken over from the caller.

use http::HeaderMap;
use proa_apimachinery::status::ApiError;

use crate::authz::{self, Attributes};
use crate::core::Core;
use crate::request_info::decode;
use crate::user::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, User};

const GROUP: &str = "authentication.k8s.io";
const EXTRA: &str = "impersonate-extra-";

/// Who a request wants to be, if its caller may be them; `None` when it goes on as its caller.
///
/// # Errors
/// When the headers make no sense, or the caller may not.
pub async fn impersonated(core: &Core, headers: &HeaderMap, caller: &User) -> Result<Option<User>, ApiError> {
    let Some(wish) = Wish::read(headers)? else { return Ok(None) };
    let refused = |wish: &Wish| {
        wish.needs().find_map(|need| {
            let what = need.attributes();
            (!authz::allowed(core, caller, &what)).then(|| authz::forbidden(caller, true, &what))
        })
    };
    if refused(&wish).is_some() {
        // The roles may have been written an instant ago, on another connection.
        core.caches.consistent().await?;
        if let Some(refusal) = refused(&wish) {
            return Err(refusal);
        }
    }
    Ok(Some(wish.user()))
}

/// What the headers say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wish {
    name: String,
    uid: Option<String>,
    groups: Vec<String>,
    extra: Vec<(String, String)>,
}

/// One permission that is needed.
struct Need<'a> {
    group: &'static str,
    resource: &'static str,
    subresource: &'a str,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Need<'a> {
    fn attributes(&self) -> Attributes<'a> {
        Attributes {
            verb: "impersonate",
            group: self.group,
            resource: self.resource,
            subresource: self.subresource,
            namespace: self.namespace,
            name: self.name,
            ..Attributes::default()
        }
    }
}

/// Namespace and name of the service account a user name stands for.
fn account(name: &str) -> Option<(&str, &str)> {
    let (namespace, name) = name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

impl Wish {
    fn read(headers: &HeaderMap) -> Result<Option<Wish>, ApiError> {
        let values = |name: &str| -> Vec<String> {
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
        };
        let mut extra: Vec<(String, String)> = Vec::new();
        for (header, value) in headers {
            // Keys are percent-encoded, for a header's name cannot hold every character, and in lower case.
            let Some(key) = header.as_str().strip_prefix(EXTRA) else { continue };
            extra.push((decode(key), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        }
        let first = |name: &str| values(name).into_iter().next().filter(|value| !value.is_empty());
        let (groups, uid) = (values("impersonate-group"), first("impersonate-uid"));
        match first("impersonate-user") {
            Some(name) => Ok(Some(Wish { name, uid, groups, extra })),
            None if groups.is_empty() && uid.is_none() && extra.is_empty() => Ok(None),
            None => {
                let kinds = [("Group", !groups.is_empty()), ("UserExtra", !extra.is_empty()), ("UID", uid.is_some())];
                let asked: Vec<&str> = kinds.iter().filter(|(_, asked)| *asked).map(|(kind, _)| *kind).collect();
                let asked = asked.join(" ");
                Err(ApiError::bad_request(format!("requested [{asked}] without impersonating a user")))
            }
        }
    }

    fn needs(&self) -> impl Iterator<Item = Need<'_>> {
        let user = match account(&self.name) {
            Some((namespace, name)) => {
                Need { group: "", resource: "serviceaccounts", subresource: "", namespace, name }
            }
            None => Need { group: "", resource: "users", subresource: "", namespace: "", name: &self.name },
        };
        let part = |group, resource, name| Need { group, resource, subresource: "", namespace: "", name };
        let groups = self.groups.iter().map(move |name| part("", "groups", name));
        let extra = self.extra.iter().map(|(key, value)| Need {
            group: GROUP,
            resource: "userextras",
            subresource: key,
            namespace: "",
            name: value,
        });
        let uid = self.uid.iter().map(move |uid| part(GROUP, "uids", uid));
        std::iter::once(user).chain(groups).chain(extra).chain(uid)
    }

    fn user(self) -> User {
        let mut user = match account(&self.name) {
            // Those who name groups mean these and no others.
            Some((namespace, name)) if self.groups.is_empty() => User::service_account(namespace, name, ""),
            _ => User { name: self.name, groups: self.groups, ..User::default() },
        };
        let belongs = if user.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
        if !user.in_group(AUTHENTICATED) && !user.in_group(UNAUTHENTICATED) {
            user.groups.push(belongs.to_owned());
        }
        user.uid = self.uid.unwrap_or_default();
        for (key, value) in self.extra {
            user.extra.entry(key).or_default().push(value);
        }
        user
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(said: &[(&'static str, &str)]) -> HeaderMap {
        said.iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<Vec<_>>()
            .into_iter()
            .fold(HeaderMap::new(), |mut map, (name, value): (http::HeaderName, http::HeaderValue)| {
                map.append(name, value);
                map
            })
    }

    #[test]
    fn every_part_of_the_other_identity_needs_leave() {
        let wish = Wish::read(&headers(&[
            ("Impersonate-User", "jane"),
            ("Impersonate-Group", "devs"),
            ("Impersonate-Group", "ops"),
            ("Impersonate-Uid", "06f6"),
            ("Impersonate-Extra-Acme.com%2fProject", "some"),
            ("Impersonate-Extra-Acme.com%2fProject", "other"),
        ]))
        .unwrap()
        .unwrap();
        let needs: Vec<String> = wish
            .needs()
            .map(|need| format!("{}/{}/{}/{}", need.group, need.resource, need.subresource, need.name))
            .collect();
        assert_eq!(
            needs,
            [
                "/users//jane",
                "/groups//devs",
                "/groups//ops",
                "authentication.k8s.io/userextras/acme.com/project/some",
                "authentication.k8s.io/userextras/acme.com/project/other",
                "authentication.k8s.io/uids//06f6"
            ]
        );
        let user = wish.user();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane", "06f6"));
        assert_eq!(user.groups, ["devs", "ops", AUTHENTICATED]);
        assert_eq!(user.extra["acme.com/project"], ["some", "other"]);
    }

    #[test]
    fn the_groups_of_the_other_are_those_it_has_or_those_that_are_named() {
        let groups = |said: &[(&'static str, &str)]| Wish::read(&headers(said)).unwrap().unwrap().user().groups;
        let account = ("Impersonate-User", "system:serviceaccount:a:b");
        assert_eq!(groups(&[account]), ["system:serviceaccounts", "system:serviceaccounts:a", AUTHENTICATED]);
        assert_eq!(groups(&[account, ("Impersonate-Group", "x")]), ["x", AUTHENTICATED]);
        assert_eq!(groups(&[("Impersonate-User", ANONYMOUS)]), [UNAUTHENTICATED]);
        assert_eq!(groups(&[("Impersonate-User", "u"), ("Impersonate-Group", UNAUTHENTICATED)]), [UNAUTHENTICATED]);
    }

    #[test]
    fn groups_and_more_of_nobody_are_refused() {
        let error = Wish::read(&headers(&[("Impersonate-Group", "a"), ("Impersonate-Uid", "b")])).unwrap_err();
        assert_eq!(error.message, "requested [Group UID] without impersonating a user");
        assert_eq!(Wish::read(&HeaderMap::new()).unwrap(), None);
    }
}
