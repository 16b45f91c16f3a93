//! Owns `$(VAR)` expansion in commands, arguments, environment values and `subPathExpr`.
//! Never looks a variable up itself: the caller gives the mapping.

/// Expands `$(NAME)` by `lookup`. Kubernetes' rules: an unknown name stays as it is written, `$$` is one
/// dollar sign, and any other use of `$` is literal.
pub(crate) fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let (text, _) = expand_reporting(input, lookup);
    text
}

/// As [`expand`], and the first name that is not known: `subPathExpr` refuses those.
pub(crate) fn expand_reporting(input: &str, lookup: impl Fn(&str) -> Option<String>) -> (String, Option<String>) {
    let mut out = String::with_capacity(input.len());
    let mut unknown = None;
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(body) = after.strip_prefix('(') {
            match body.find(')') {
                Some(end) => {
                    let name = &body[..end];
                    match lookup(name) {
                        Some(value) => out.push_str(&value),
                        None => {
                            unknown.get_or_insert_with(|| name.to_owned());
                            out.push_str(&rest[at..at + 3 + end]);
                        }
                    }
                    rest = &body[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = body;
                }
            }
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    (out, unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion_follows_the_published_table() {
        let vars = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "B" => Some("$(A)".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (input, want) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "a"),
            ("x-$(A)-$(A)-y", "x-a-a-y"),
            ("$(B)", "$(A)"),
            ("$(NOPE)", "$(NOPE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$$$$(A)", "$$(A)"),
            ("$(EMPTY)", ""),
            ("$A", "$A"),
            ("$", "$"),
            ("a$", "a$"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("$((A))", "$((A))"),
            ("${A}", "${A}"),
            ("é$(A)é", "éaé"),
        ] {
            assert_eq!(expand(input, vars), want, "input {input:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_without_a_dollar_is_untouched(text in "[^$]*") {
            proptest::prop_assert_eq!(expand(&text, |_| Some("x".into())), text);
        }

        #[test]
        fn any_text_expands_without_panic(text in ".*") {
            let _ = expand(&text, |_| None);
        }
    }
}
