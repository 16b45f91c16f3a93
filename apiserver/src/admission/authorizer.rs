//! Who answers what expressions ask of `authorizer`: the server's own authorizers, for the user of the request.

use std::sync::Arc;

use proa_apimachinery::cel::Scope;
use proa_apimachinery::cel::authorizer::{Authorizer, Decision, Question};

use super::attributes::{Attributes, Operation};
use crate::authz;
use crate::core::Core;
use crate::request_info::{labelled, selected};
use crate::user::User;

struct Asked {
    core: Arc<Core>,
    user: User,
}

/// Gives the variable its meaning for this request.
pub(super) fn bind(scope: &mut Scope, core: &Arc<Core>, attributes: &Attributes<'_>) {
    let asked = Asked { core: Arc::clone(core), user: attributes.user.clone() };
    let kind = &attributes.resource.kind;
    let question = Question {
        group: kind.group.to_string(),
        resource: kind.plural.to_string(),
        subresource: attributes.subresource.to_owned(),
        namespace: attributes.namespace.clone(),
        name: if attributes.operation == Operation::Create { String::new() } else { attributes.name.clone() },
        ..Question::default()
    };
    scope.bind_authorizer(Arc::new(asked), question);
}

impl Authorizer for Asked {
    fn decide(&self, question: &Question) -> Decision {
        let account = question.service_account.as_ref().map(|(namespace, name)| {
            let uid = self.core.caches.resource("serviceaccounts").get(namespace, name);
            User::service_account(
                namespace,
                name,
                uid.map(|item| item.object().uid().to_owned()).as_deref().unwrap_or(""),
            )
        });
        let selected = selected(&question.field_selector);
        let labelled = labelled(&question.label_selector);
        let what = match &question.path {
            Some(path) => authz::Attributes { verb: &question.verb, path, ..authz::Attributes::default() },
            None => authz::Attributes {
                verb: &question.verb,
                group: &question.group,
                resource: &question.resource,
                subresource: &question.subresource,
                namespace: &question.namespace,
                name: &question.name,
                path: "",
                selected: &selected,
                labelled: &labelled,
            },
        };
        let verdict = authz::decide(&self.core, account.as_ref().unwrap_or(&self.user), &what);
        Decision { allowed: verdict.is_allowed(), reason: verdict.reason() }
    }
}
