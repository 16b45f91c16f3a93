//! `AuthenticationConfiguration` (apiserver.config.k8s.io/v1): whose tokens are good besides our own, what their claims
//! mean, and where one may come without any. Refuses in Kubernetes' words what makes no sense, and by name what is not
//! supported here (egress selectors).

use proa_apimachinery::cel::{Environment, Expression};
use serde::Deserialize;
use serde_json::{Value, json};

use super::mapping::{ClaimRule, Mapping, Source, UserRule};
use crate::authn::jose::Algorithm;

/// What is wrong with the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct ConfigError {
    path: String,
    problem: String,
}

fn wrong(path: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError { path: path.into(), problem: problem.into() }
}

/// Who is let in.
#[derive(Debug)]
pub struct Settings {
    /// Whose tokens are good.
    pub issuers: Vec<Issuer>,
    /// Who comes without a credential.
    pub anonymous: Anonymous,
}

/// What becomes of a request without a credential.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Anonymous {
    /// It is `system:anonymous`, for whom RBAC says what they may.
    #[default]
    Everywhere,
    /// It is refused.
    Nowhere,
    /// It is `system:anonymous` at these paths, and refused elsewhere.
    At(Vec<String>),
}

impl Anonymous {
    /// Whether one may come without a credential to this path.
    pub fn may_come_to(&self, path: &str) -> bool {
        match self {
            Anonymous::Everywhere => true,
            Anonymous::Nowhere => false,
            Anonymous::At(paths) => paths.iter().any(|have| have == path),
        }
    }
}

/// An issuer of tokens.
#[derive(Debug)]
pub struct Issuer {
    /// What its tokens call it.
    pub url: String,
    /// Where its discovery document is.
    pub discovery_url: String,
    /// By what its server is known (PEM); the machine's authorities when there is nothing.
    pub authority: Vec<u8>,
    /// For one of these its tokens must be meant.
    pub audiences: Vec<String>,
    /// How its tokens may be signed.
    pub algorithms: Vec<Algorithm>,
    /// What its claims mean.
    pub mapping: Mapping,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    jwt: Vec<Jwt>,
    anonymous: Option<AnonymousForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnonymousForm {
    #[serde(default)]
    enabled: bool,
    #[serde(default)]
    conditions: Vec<AnonymousCondition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnonymousCondition {
    path: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Jwt {
    issuer: IssuerForm,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimRuleForm>,
    #[serde(default)]
    claim_mappings: Mappings,
    #[serde(default)]
    user_validation_rules: Vec<UserRuleForm>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IssuerForm {
    #[serde(default)]
    url: String,
    #[serde(rename = "discoveryURL")]
    discovery_url: Option<String>,
    #[serde(default)]
    certificate_authority: String,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default)]
    audience_match_policy: String,
    egress_selector_type: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct ClaimRuleForm {
    claim: String,
    required_value: String,
    expression: String,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserRuleForm {
    #[serde(default)]
    expression: String,
    #[serde(default)]
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mappings {
    username: SourceForm,
    groups: SourceForm,
    uid: SourceForm,
    extra: Vec<ExtraForm>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SourceForm {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExtraForm {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value_expression: String,
}

impl Settings {
    /// What holds when nothing is said: no issuers but our own, and anybody may come.
    pub fn none() -> Settings {
        Settings { issuers: Vec::new(), anonymous: Anonymous::default() }
    }

    /// Reads a file. `own` are the issuers of service-account tokens, which no other may claim to be.
    ///
    /// # Errors
    /// Says where it is wrong.
    pub fn parse(file: &[u8], own: &[String]) -> Result<Settings, ConfigError> {
        let documents = proa_apimachinery::yaml::from_yaml(file).map_err(|error| wrong("file", error.to_string()))?;
        let [document] = documents.as_slice() else { return Err(wrong("file", "must hold one document")) };
        Settings::read(document, own, &Algorithm::ALL)
    }

    fn read(document: &Value, own: &[String], algorithms: &[Algorithm]) -> Result<Settings, ConfigError> {
        let file = serde_json::from_value::<File>(document.clone());
        let file = file.map_err(|error| wrong("file", error.to_string()))?;
        let known = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"];
        if file.kind != "AuthenticationConfiguration" || !known.contains(&file.api_version.as_str()) {
            let what = format!("{} of {}", file.kind, file.api_version);
            return Err(wrong(
                "file",
                format!("is a {what}, not an AuthenticationConfiguration of apiserver.config.k8s.io/v1"),
            ));
        }
        let anonymous = match file.anonymous {
            None => Anonymous::default(),
            Some(AnonymousForm { enabled: false, conditions }) if !conditions.is_empty() => {
                let why = "enabled should be set to true when conditions are defined";
                return Err(wrong("anonymous.conditions", format!("Invalid value: {why}")));
            }
            Some(AnonymousForm { enabled: false, .. }) => Anonymous::Nowhere,
            Some(form) if form.conditions.is_empty() => Anonymous::Everywhere,
            Some(form) => Anonymous::At(form.conditions.into_iter().map(|condition| condition.path).collect()),
        };
        let mut issuers: Vec<Issuer> = Vec::new();
        for (at, jwt) in file.jwt.into_iter().enumerate() {
            let path = format!("jwt[{at}]");
            let issuer = issuer(jwt, algorithms, &path)?;
            let url = format!("{path}.issuer.url");
            if own.contains(&issuer.url) {
                let why = "URL must not overlap with disallowed issuers";
                return Err(wrong(url, format!("Invalid value: {:?}: {why}: {own:?}", issuer.url)));
            }
            if issuers.iter().any(|other| other.url == issuer.url) {
                return Err(wrong(url, format!("Duplicate value: {:?}", issuer.url)));
            }
            if issuers.iter().any(|other| other.discovery_url == issuer.discovery_url) {
                let path = format!("{path}.issuer.discoveryURL");
                return Err(wrong(path, format!("Duplicate value: {:?}", issuer.discovery_url)));
            }
            issuers.push(issuer);
        }
        Ok(Settings { issuers, anonymous })
    }

    /// The configuration the flags `--oidc-…` stand for.
    ///
    /// # Errors
    /// As for a file.
    pub fn of_flags(flags: &OidcFlags, own: &[String]) -> Result<Settings, ConfigError> {
        let claim = flags.username_claim.as_str();
        let prefix = match flags.username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(prefix) => prefix.to_owned(),
            // A mail address says already where it is from.
            None if claim == "email" => String::new(),
            None => format!("{}#", flags.issuer_url),
        };
        let rules: Vec<Value> = flags
            .required_claims
            .iter()
            .map(|(claim, value)| json!({"claim": claim, "requiredValue": value}))
            .collect();
        let mut mappings = json!({"username": {"claim": claim, "prefix": prefix}});
        if let Some(claim) = &flags.groups_claim {
            mappings["groups"] = json!({"claim": claim, "prefix": flags.groups_prefix});
        }
        let authority = String::from_utf8_lossy(&flags.authority).into_owned();
        let document = json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
            "jwt": [{"issuer": {"url": flags.issuer_url, "audiences": [flags.client_id], "certificateAuthority": authority},
                "claimMappings": mappings, "claimValidationRules": rules}],
        });
        let algorithms = flags.algorithms.iter().map(|name| {
            Algorithm::named(name).ok_or_else(|| wrong("oidc-signing-algs", format!("Unsupported value: {name:?}")))
        });
        Settings::read(&document, own, &algorithms.collect::<Result<Vec<_>, _>>()?)
    }
}

/// The flags of old.
#[derive(Clone, Debug)]
pub struct OidcFlags {
    /// `--oidc-issuer-url`
    pub issuer_url: String,
    /// `--oidc-client-id`
    pub client_id: String,
    /// `--oidc-username-claim`
    pub username_claim: String,
    /// `--oidc-username-prefix`; `-` for none
    pub username_prefix: Option<String>,
    /// `--oidc-groups-claim`
    pub groups_claim: Option<String>,
    /// `--oidc-groups-prefix`
    pub groups_prefix: String,
    /// `--oidc-required-claim`
    pub required_claims: Vec<(String, String)>,
    /// `--oidc-signing-algs`
    pub algorithms: Vec<String>,
    /// The content of `--oidc-ca-file`
    pub authority: Vec<u8>,
}

fn issuer(jwt: Jwt, algorithms: &[Algorithm], path: &str) -> Result<Issuer, ConfigError> {
    let form = jwt.issuer;
    let here = format!("{path}.issuer");
    https(&form.url, &format!("{here}.url"))?;
    if let Some(url) = form.discovery_url.as_deref().filter(|url| !url.is_empty()) {
        https(url, &format!("{here}.discoveryURL"))?;
        if url.trim_end_matches('/') == form.url.trim_end_matches('/') {
            let why = "discoveryURL must be different from URL";
            return Err(wrong(format!("{here}.discoveryURL"), format!("Invalid value: {url:?}: {why}")));
        }
    }
    if form.egress_selector_type.is_some() {
        return Err(wrong(format!("{here}.egressSelectorType"), "egress selectors are not supported by Proa"));
    }
    if form.audiences.is_empty() {
        return Err(wrong(
            format!("{here}.audiences"),
            format!("Required value: at least one {here}.audiences is required"),
        ));
    }
    if let Some(at) = form.audiences.iter().position(String::is_empty) {
        return Err(wrong(format!("{here}.audiences[{at}]"), "Required value: audience can't be empty"));
    }
    match (form.audiences.len(), form.audience_match_policy.as_str()) {
        (1, "" | "MatchAny") | (2.., "MatchAny") => {}
        (_, policy) => {
            let why = "audienceMatchPolicy must be MatchAny for multiple audiences";
            return Err(wrong(format!("{here}.audienceMatchPolicy"), format!("Invalid value: {policy:?}: {why}")));
        }
    }
    if !form.certificate_authority.is_empty()
        && crate::pki::certificates(&form.certificate_authority).map_or(true, |all| all.is_empty())
    {
        let why = "Invalid value: \"<omitted>\": data does not contain any valid RSA or ECDSA certificates";
        return Err(wrong(format!("{here}.certificateAuthority"), why));
    }
    let discovery_url = match form.discovery_url.filter(|url| !url.is_empty()) {
        Some(url) => url,
        None => format!("{}/.well-known/openid-configuration", form.url.trim_end_matches('/')),
    };
    let mapping = mapping(jwt.claim_mappings, jwt.claim_validation_rules, jwt.user_validation_rules, path)?;
    Ok(Issuer {
        url: form.url,
        discovery_url,
        authority: form.certificate_authority.into_bytes(),
        audiences: form.audiences,
        algorithms: algorithms.to_vec(),
        mapping,
    })
}

fn https(url: &str, path: &str) -> Result<(), ConfigError> {
    if url.is_empty() {
        return Err(wrong(path, "Required value: URL is required"));
    }
    let refuse = |why: &str| Err(wrong(path, format!("Invalid value: {url:?}: {why}")));
    let Ok(uri) = url.parse::<http::Uri>() else { return refuse("is no URL") };
    if uri.scheme_str() != Some("https") {
        return refuse("URL scheme must be https");
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return refuse("URL must not contain a username or password");
    }
    if uri.query().is_some() {
        return refuse("URL must not contain a query");
    }
    if url.contains('#') {
        return refuse("URL must not contain a fragment");
    }
    Ok(())
}

fn compiled(text: &str, variable: &str, path: String) -> Result<Expression, ConfigError> {
    let compiled = Expression::compile(text, &Environment::of(&[variable]), &[]);
    compiled.map_err(|why| wrong(path, format!("Invalid value: {text:?}: {why}")))
}

fn condition(text: &str, variable: &str, path: String) -> Result<Expression, ConfigError> {
    if text.is_empty() {
        return Err(wrong(path, "Required value: expression is required"));
    }
    Expression::condition(text, &[variable]).map_err(|why| wrong(path, format!("Invalid value: {text:?}: {why}")))
}

fn mapping(
    forms: Mappings,
    claim_rules: Vec<ClaimRuleForm>,
    user_rules: Vec<UserRuleForm>,
    path: &str,
) -> Result<Mapping, ConfigError> {
    let here = format!("{path}.claimMappings");
    verified_mail(&forms, &claim_rules, &format!("{here}.username.expression"))?;
    let username = source(forms.username, true, &format!("{here}.username"))?
        .ok_or_else(|| wrong(format!("{here}.username"), "Required value: claim or expression is required"))?;
    let groups = source(forms.groups, true, &format!("{here}.groups"))?;
    let uid = source(forms.uid, false, &format!("{here}.uid"))?;
    let mut extra: Vec<(String, Expression)> = Vec::new();
    for (at, form) in forms.extra.into_iter().enumerate() {
        let path = format!("{here}.extra[{at}]");
        extra_key(&form.key, &format!("{path}.key"))?;
        if extra.iter().any(|(key, _)| *key == form.key) {
            return Err(wrong(format!("{path}.key"), format!("Duplicate value: {:?}", form.key)));
        }
        let path = format!("{path}.valueExpression");
        if form.value_expression.is_empty() {
            return Err(wrong(path, "Required value: valueExpression is required"));
        }
        extra.push((form.key, compiled(&form.value_expression, "claims", path)?));
    }
    let mut rules = Vec::new();
    for (at, form) in claim_rules.into_iter().enumerate() {
        let path = format!("{path}.claimValidationRules[{at}]");
        rules.push(match (form.claim.is_empty(), form.expression.is_empty()) {
            (false, false) => return Err(wrong(path, "Invalid value: claim and expression can't both be set")),
            (true, true) => return Err(wrong(path, "Required value: claim or expression is required")),
            (false, true) if !form.message.is_empty() => {
                return Err(wrong(format!("{path}.message"), "Invalid value: message can't be set when claim is set"));
            }
            (false, true) => ClaimRule::Value { claim: form.claim, value: form.required_value },
            (true, false) if !form.required_value.is_empty() => {
                let why = "Invalid value: requiredValue can't be set when expression is set";
                return Err(wrong(format!("{path}.requiredValue"), why));
            }
            (true, false) => ClaimRule::Expression {
                expression: condition(&form.expression, "claims", format!("{path}.expression"))?,
                message: form.message,
            },
        });
    }
    let mut about_user = Vec::new();
    for (at, form) in user_rules.into_iter().enumerate() {
        let path = format!("{path}.userValidationRules[{at}].expression");
        about_user.push(UserRule { expression: condition(&form.expression, "user", path)?, message: form.message });
    }
    Ok(Mapping { username, groups, uid, extra, claim_rules: rules, user_rules: about_user })
}

fn source(form: SourceForm, prefixed: bool, path: &str) -> Result<Option<Source>, ConfigError> {
    match (form.claim.is_empty(), form.expression.is_empty()) {
        (true, true) if form.prefix.is_some() => {
            Err(wrong(path, "Invalid value: non-empty prefix can't be set when claim is not set"))
        }
        (true, true) => Ok(None),
        (false, false) => Err(wrong(path, "Invalid value: claim and expression can't both be set")),
        (true, false) if form.prefix.is_some() => {
            Err(wrong(format!("{path}.prefix"), "Invalid value: prefix can't be set when expression is set"))
        }
        (true, false) => compiled(&form.expression, "claims", format!("{path}.expression"))
            .map(|made| Some(Source::Expression(made))),
        (false, true) => match (form.prefix, prefixed) {
            (None, true) => {
                let why = "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                Err(wrong(format!("{path}.prefix"), format!("Required value: {why}")))
            }
            (prefix, _) => Ok(Some(Source::Claim { claim: form.claim, prefix: prefix.unwrap_or_default() })),
        },
    }
}

/// An address that nobody has verified is anybody's: who uses it by an expression must look at the claim that says so.
fn verified_mail(forms: &Mappings, rules: &[ClaimRuleForm], path: &str) -> Result<(), ConfigError> {
    let expressions = std::iter::once(forms.username.expression.as_str())
        .chain(forms.extra.iter().map(|form| form.value_expression.as_str()))
        .chain(rules.iter().map(|form| form.expression.as_str()));
    let mail = forms.username.expression.replace("claims.email_verified", "");
    let uses_mail =
        mail.contains("claims.email") || mail.contains("claims[\"email\"]") || mail.contains("claims['email']");
    if uses_mail && !expressions.into_iter().any(|text| text.contains("email_verified")) {
        let why = "claims.email_verified must be used in claimMappings.username.expression or \
                   claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in \
                   claimMappings.username.expression";
        return Err(wrong(path, format!("Invalid value: {:?}: {why}", forms.username.expression)));
    }
    Ok(())
}

/// A path below a domain, in lower case, and none of Kubernetes' own.
fn extra_key(key: &str, path: &str) -> Result<(), ConfigError> {
    let refuse = |why: &str| Err(wrong(path, format!("Invalid value: {key:?}: {why}")));
    if key.is_empty() {
        return Err(wrong(path, "Required value: key is required"));
    }
    let Some((domain, name)) = key.split_once('/').filter(|(_, name)| !name.is_empty()) else {
        return refuse("must be a domain-prefixed path (such as \"acme.io/foo\")");
    };
    if name.is_empty() || !proa_apimachinery::names::is_dns1123_subdomain(domain).is_empty() {
        return refuse("must be a domain-prefixed path (such as \"acme.io/foo\")");
    }
    if key.chars().any(|c| c.is_ascii_uppercase()) {
        return refuse("key must be lowercase");
    }
    let reserved = ["k8s.io", "kubernetes.io"];
    if reserved.iter().any(|own| domain == *own || domain.ends_with(&format!(".{own}"))) {
        return refuse("k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> Result<Settings, ConfigError> {
        let file = format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n{rest}");
        Settings::parse(file.as_bytes(), &["https://kubernetes.default.svc".to_owned()])
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_place() {
        let jwt = |issuer: &str, rest: &str| format!("jwt: [{{issuer: {{{issuer}}}, {rest}}}]");
        let good = "url: 'https://a', audiences: [b]";
        let user = "claimMappings: {username: {claim: sub, prefix: ''}}";
        let maps = |rest: &str| jwt(good, &format!("claimMappings: {{{rest}}}"));
        let named = "username: {claim: sub, prefix: ''}";
        for (file, expected) in [
            (jwt("audiences: [b]", user), "jwt[0].issuer.url: Required value: URL is required"),
            (jwt("url: 'http://a', audiences: [b]", user), "URL scheme must be https"),
            (jwt("url: 'https://u:p@a', audiences: [b]", user), "must not contain a username or password"),
            (jwt("url: 'https://a?b', audiences: [b]", user), "must not contain a query"),
            (
                jwt("url: 'https://kubernetes.default.svc', audiences: [b]", user),
                "must not overlap with disallowed issuers",
            ),
            (jwt("url: 'https://a'", user), "at least one jwt[0].issuer.audiences is required"),
            (jwt("url: 'https://a', audiences: [b, c]", user), "must be MatchAny for multiple audiences"),
            (jwt(&format!("{good}, discoveryURL: 'https://a/'"), user), "must be different from URL"),
            (jwt(&format!("{good}, certificateAuthority: x"), user), "does not contain any valid"),
            (jwt(&format!("{good}, egressSelectorType: cluster"), user), "egress selectors are not supported by Proa"),
            (
                format!("jwt: [{{issuer: {{{good}}}, {user}}}, {{issuer: {{{good}}}, {user}}}]"),
                "jwt[1].issuer.url: Duplicate value",
            ),
            (maps(""), "claimMappings.username: Required value: claim or expression is required"),
            (
                maps("username: {claim: sub}"),
                "claimMappings.username.prefix: Required value: prefix is required when claim is set",
            ),
            (maps("username: {claim: sub, expression: claims.sub}"), "claim and expression can't both be set"),
            (
                maps("username: {expression: 'claims.'}"),
                "claimMappings.username.expression: Invalid value: \"claims.\": compilation failed",
            ),
            (maps("username: {expression: 'user.name'}"), "compilation failed"),
            (maps("username: {expression: claims.email}"), "claims.email_verified must be used"),
            (
                maps(&format!("{named}, extra: [{{key: Foo, valueExpression: claims.a}}]")),
                "must be a domain-prefixed path",
            ),
            (
                maps(&format!("{named}, extra: [{{key: a.kubernetes.io/b, valueExpression: claims.a}}]")),
                "reserved for Kubernetes use",
            ),
            (maps(&format!("{named}, extra: [{{key: a.b/c}}]")), "valueExpression is required"),
            (jwt(good, &format!("{user}, claimValidationRules: [{{}}]")), "claimValidationRules[0]: Required value"),
            (
                jwt(good, &format!("{user}, claimValidationRules: [{{claim: a, message: b}}]")),
                "message can't be set when claim is set",
            ),
            (jwt(good, &format!("{user}, claimValidationRules: [{{expression: '1'}}]")), "must evaluate to bool"),
            (
                jwt(good, &format!("{user}, userValidationRules: [{{}}]")),
                "userValidationRules[0].expression: Required value",
            ),
            ("anonymous: {enabled: false, conditions: [{path: /livez}]}".to_owned(), "enabled should be set to true"),
            ("webhooks: []".to_owned(), "unknown field `webhooks`"),
        ] {
            let error = parse(&file).map(|_| ()).expect_err(&file).to_string();
            assert!(error.contains(expected), "{file}: {error}");
        }
        assert!(parse(&jwt(good, user)).is_ok());
        let mail = "username: {expression: 'claims.email_verified ? claims.email : claims.sub'}";
        assert!(parse(&maps(mail)).is_ok());
    }

    #[test]
    fn without_a_credential_one_comes_where_the_file_says() {
        let anonymous = |rest: &str| parse(rest).unwrap().anonymous;
        assert_eq!(anonymous("anonymous: {enabled: true}"), Anonymous::Everywhere);
        assert_eq!(anonymous("anonymous: {enabled: false}"), Anonymous::Nowhere);
        let health = anonymous("anonymous: {enabled: true, conditions: [{path: /livez}, {path: /readyz}]}");
        assert!(health.may_come_to("/livez") && !health.may_come_to("/livez/ping") && !health.may_come_to("/api"));
    }

    #[test]
    fn the_flags_of_old_are_the_same_said_otherwise() {
        let flags = OidcFlags {
            issuer_url: "https://a".into(),
            client_id: "kubectl".into(),
            username_claim: "sub".into(),
            username_prefix: None,
            groups_claim: Some("groups".into()),
            groups_prefix: "oidc:".into(),
            required_claims: vec![("hd".into(), "example.com".into())],
            algorithms: vec!["RS256".into()],
            authority: Vec::new(),
        };
        let user = |flags: &OidcFlags, claims: Value| {
            let settings = Settings::of_flags(flags, &[]).unwrap();
            let user = settings.issuers[0].mapping.user(&claims);
            user.map(|user| (user.name, user.groups))
        };
        let claims =
            json!({"sub": "me", "email": "me@x", "email_verified": true, "groups": ["g"], "hd": "example.com"});
        let (name, groups) = user(&flags, claims.clone()).unwrap();
        assert_eq!((name.as_str(), groups[0].as_str()), ("https://a#me", "oidc:g"));
        let mail = OidcFlags { username_claim: "email".into(), ..flags.clone() };
        assert_eq!(user(&mail, claims.clone()).unwrap().0, "me@x");
        let bare = OidcFlags { username_prefix: Some("-".into()), ..flags.clone() };
        assert_eq!(user(&bare, claims).unwrap().0, "me");
        assert!(user(&flags, json!({"sub": "me", "hd": "example.org"})).is_err());
        assert!(Settings::of_flags(&OidcFlags { algorithms: vec!["HS256".into()], ..flags }, &[]).is_err());
    }
}
