//! What the claims of a token mean: who its bearer is, and whether that is one we let in. Pure.

use proa_apimachinery::cel::{CONDITIONS_BUDGET, Expression, Scope};
use serde_json::{Value, json};

use crate::user::{AUTHENTICATED, User};

/// From claims to a user.
#[derive(Debug)]
pub struct Mapping {
    pub(super) username: Source,
    pub(super) groups: Option<Source>,
    pub(super) uid: Option<Source>,
    pub(super) extra: Vec<(String, Expression)>,
    pub(super) claim_rules: Vec<ClaimRule>,
    pub(super) user_rules: Vec<UserRule>,
}

/// Where a part of the user comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// A claim, and what is put before it.
    Claim { claim: String, prefix: String },
    /// An expression over `claims`.
    Expression(Expression),
}

/// What must hold of the claims.
#[derive(Debug)]
pub(super) enum ClaimRule {
    /// A claim is this text.
    Value { claim: String, value: String },
    /// An expression over `claims` is true.
    Expression { expression: Expression, message: String },
}

/// What must hold of the user that comes out.
#[derive(Debug)]
pub(super) struct UserRule {
    pub(super) expression: Expression,
    pub(super) message: String,
}

impl Mapping {
    /// The user of claims whose signature, issuer, audience and times are good.
    ///
    /// # Errors
    /// Why they are nobody we let in.
    pub fn user(&self, claims: &Value) -> Result<User, String> {
        let mut scope = Scope::default();
        scope.bind("claims", claims);
        let mut budget = CONDITIONS_BUDGET;
        for rule in &self.claim_rules {
            rule.check(claims, &scope, &mut budget)?;
        }
        let name = self.username.texts("username", claims, &scope, &mut budget)?;
        let [name] = name.as_slice() else { return Err("oidc: the username is not a string".into()) };
        if let Source::Claim { claim, .. } = &self.username
            && claim == "email"
            && claims.get("email_verified").is_some_and(|verified| verified != &Value::Bool(true))
        {
            return Err("oidc: email not verified".into());
        }
        if name.is_empty() {
            return Err("oidc: the username is empty".into());
        }
        let mut user = User { name: name.clone(), ..User::default() };
        if let Some(source) = &self.groups {
            user.groups = source.texts("groups", claims, &scope, &mut budget)?;
        }
        if let Some(source) = &self.uid {
            let uid = source.texts("uid", claims, &scope, &mut budget)?;
            user.uid = uid.into_iter().next().unwrap_or_default();
        }
        for (key, expression) in &self.extra {
            let value = expression.value(&scope, &mut budget).map_err(|why| format!("oidc: extra {key:?}: {why}"))?;
            let texts: Vec<String> =
                texts(&value).ok_or_else(|| format!("oidc: extra {key:?} is no string or list"))?;
            let texts: Vec<String> = texts.into_iter().filter(|text| !text.is_empty()).collect();
            if !texts.is_empty() {
                user.extra.insert(key.clone(), texts);
            }
        }
        let seen = json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
        let mut scope = Scope::default();
        scope.bind("user", &seen);
        for rule in &self.user_rules {
            holds(&rule.expression, &rule.message, &scope, &mut budget)
                .map_err(|why| format!("oidc: error evaluating user info validation rule: {why}"))?;
        }
        if !user.in_group(AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        Ok(user)
    }
}

impl ClaimRule {
    fn check(&self, claims: &Value, scope: &Scope, budget: &mut u64) -> Result<(), String> {
        match self {
            ClaimRule::Value { claim, value } => match claims.get(claim) {
                None => Err(format!("oidc: required claim {claim} not present in ID token")),
                Some(Value::String(have)) if have == value => Ok(()),
                Some(_) => Err(format!("oidc: required claim {claim} value does not match")),
            },
            ClaimRule::Expression { expression, message } => holds(expression, message, scope, budget)
                .map_err(|why| format!("oidc: error evaluating claim validation expression: {why}")),
        }
    }
}

fn holds(expression: &Expression, message: &str, scope: &Scope, budget: &mut u64) -> Result<(), String> {
    match expression.value(scope, budget)? {
        Value::Bool(true) => Ok(()),
        _ if message.is_empty() => Err(format!("validation expression '{}' failed", expression.text())),
        _ => Err(format!("validation expression '{}' failed: {message}", expression.text())),
    }
}

impl Source {
    /// What it comes to: one text, or several.
    fn texts(&self, what: &str, claims: &Value, scope: &Scope, budget: &mut u64) -> Result<Vec<String>, String> {
        match self {
            Source::Claim { claim, prefix } => match claims.get(claim) {
                // A token need not speak of groups.
                None if what == "groups" => Ok(Vec::new()),
                None => Err(format!("oidc: parse {what} claim {claim:?}: claim not present")),
                Some(value) => {
                    let texts = texts(value).ok_or_else(|| format!("oidc: parse {what} claim {claim:?}: no string"))?;
                    Ok(texts.into_iter().map(|text| format!("{prefix}{text}")).collect())
                }
            },
            Source::Expression(expression) => {
                let value = expression.value(scope, budget);
                let value = value.map_err(|why| format!("oidc: error evaluating {what} claim expression: {why}"))?;
                texts(&value)
                    .ok_or_else(|| format!("oidc: {what} claim expression must return a string or a list of strings"))
            }
        }
    }
}

/// A text, a list of texts, or nothing; `None` for anything else.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;

    fn user(jwt: &str, claims: Value) -> Result<User, String> {
        let file = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {{url: 'https://a', \
             audiences: [b]}}\n  {}\n",
            jwt.replace('\n', "\n  ")
        );
        Settings::parse(file.as_bytes(), &[]).unwrap().issuers[0].mapping.user(&claims)
    }

    #[test]
    fn claims_become_a_user_by_name_or_by_expression() {
        let by_name = "claimMappings: {username: {claim: sub, prefix: 'a:'}, groups: {claim: groups, prefix: 'g:'}, uid: {claim: id}}";
        let made = user(by_name, json!({"sub": "me", "groups": ["x", "y"], "id": "7"})).unwrap();
        assert_eq!((made.name.as_str(), made.uid.as_str()), ("a:me", "7"));
        assert_eq!(made.groups, ["g:x", "g:y", AUTHENTICATED]);
        assert_eq!(user(by_name, json!({"sub": "me", "groups": "x", "id": "7"})).unwrap().groups[0], "g:x");
        assert_eq!(user(by_name, json!({"sub": "me", "id": "7"})).unwrap().groups, [AUTHENTICATED]);
        let by_expression = "claimMappings:\n  username: {expression: 'claims.sub + \":x\"'}\n  groups: {expression: 'claims.roles.split(\",\")'}\n  \
             uid: {expression: 'claims.id'}\n  extra:\n  - {key: 'example.com/team', valueExpression: 'claims.team'}\n  \
             - {key: 'example.com/none', valueExpression: '\"\"'}";
        let made = user(by_expression, json!({"sub": "me", "roles": "x,y", "id": "7", "team": ["r", "s"]})).unwrap();
        assert_eq!(made.name, "me:x");
        assert_eq!(made.groups, ["x", "y", AUTHENTICATED]);
        assert_eq!(made.extra["example.com/team"], ["r", "s"]);
        assert!(!made.extra.contains_key("example.com/none"), "what is empty is not there");
        assert!(user(by_expression, json!({"sub": "me"})).is_err(), "a claim that is missing is nobody");
    }

    #[test]
    fn who_breaks_a_rule_is_not_let_in() {
        let rules = "claimMappings: {username: {claim: sub, prefix: ''}}\n\
            claimValidationRules:\n- {claim: hd, requiredValue: example.com}\n\
            - {expression: 'claims.exp - claims.iat <= 3600', message: 'too long'}\n\
            userValidationRules:\n- {expression: \"!user.username.startsWith('system:')\", message: 'reserved'}";
        let claims = |sub: &str, hd: Value, exp: i64| json!({"sub": sub, "hd": hd, "exp": exp, "iat": 0});
        assert!(user(rules, claims("me", json!("example.com"), 3600)).is_ok());
        for (claims, expected) in [
            (claims("me", json!("example.org"), 3600), "required claim hd value does not match"),
            (claims("me", json!(1), 3600), "required claim hd value does not match"),
            (json!({"sub": "me", "exp": 1, "iat": 0}), "required claim hd not present"),
            (claims("me", json!("example.com"), 3601), "failed: too long"),
            (claims("system:admin", json!("example.com"), 3600), "failed: reserved"),
        ] {
            let why = user(rules, claims.clone()).expect_err(&claims.to_string());
            assert!(why.contains(expected), "{claims}: {why}");
        }
    }

    #[test]
    fn a_mail_address_counts_when_it_is_verified() {
        let mail = "claimMappings: {username: {claim: email, prefix: ''}}";
        assert_eq!(user(mail, json!({"email": "a@b"})).unwrap().name, "a@b", "an issuer need not say");
        assert!(user(mail, json!({"email": "a@b", "email_verified": true})).is_ok());
        assert!(user(mail, json!({"email": "a@b", "email_verified": false})).is_err());
        assert!(user(mail, json!({"email": "a@b", "email_verified": "true"})).is_err());
    }
}
