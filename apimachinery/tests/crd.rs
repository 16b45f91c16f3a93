//! Schemas of custom resources: what is structural, pruning, defaulting, validation, CEL rules.

use proa_apimachinery::schema::{Schema, crd::from_openapi_v3};
use serde_json::{Value, json};

fn schema(spec: Value) -> Schema {
    let whole = json!({"type": "object", "properties": {"spec": spec}});
    from_openapi_v3(&whole).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn texts(schema: &Schema, spec: Value, old: Option<Value>) -> Vec<String> {
    let object = |spec: Value| json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a"}, "spec": spec});
    let old = old.map(object);
    schema.validate(&object(spec), old.as_ref()).iter().map(ToString::to_string).collect()
}

/// Everything that walks a value or a schema bears the depth that parsing lets through.
#[test]
fn the_deepest_values_are_walked_on_an_ordinary_stack() {
    use proa_apimachinery::{
        json::{MAX_DEPTH, from_json},
        managed_fields::{self, Manager, Operation},
        patch,
    };
    let text = format!("{}1{}", "{\"a\":[".repeat(MAX_DEPTH / 2), "]}".repeat(MAX_DEPTH / 2));
    let (value, _) = from_json(text.as_bytes(), MAX_DEPTH).unwrap();
    let mut spec = json!({"type": "integer"});
    for _ in 0..24 {
        spec = json!({"type": "object", "properties": {"a": {"type": "array", "x-kubernetes-list-type": "atomic", "items": spec}}});
    }
    for schema in [
        from_openapi_v3(&spec),
        from_openapi_v3(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})),
    ] {
        let schema = schema.unwrap();
        let mut value = value.clone();
        schema.check(&value);
        schema.validate(&value, None);
        schema.prune(&mut value);
        schema.default(&mut value);
    }
    let object = proa_apimachinery::Object::from_value(value.clone()).unwrap();
    let manager = Manager { name: "a", operation: Operation::Apply, api_version: "v1", subresource: "" };
    let applied = managed_fields::apply(Schema::any(), None, &object, manager, false, "t").unwrap();
    managed_fields::apply(Schema::any(), Some(&applied), &object, manager, false, "t").unwrap();
    let mut merged = value.clone();
    patch::merge(&mut merged, &value);
    patch::json(&value, &json!([{"op": "test", "path": "", "value": value}])).unwrap();
    let pod = proa_apimachinery::schema::definition("io.k8s.api.core.v1.Pod").unwrap();
    patch::strategic(pod, &value, &value).unwrap();
    from_openapi_v3(&value).unwrap_err();
}

fn is_shared<T: Send + Sync>() {}

#[test]
fn schemas_are_shared_between_threads() {
    is_shared::<Schema>();
}

#[test]
fn value_validation_speaks_kubernetes() {
    let table = [
        (
            json!({"type": "integer", "maximum": 10}),
            json!(11),
            "spec: Invalid value: 11: spec in body should be less than or equal to 10",
        ),
        (
            json!({"type": "integer", "minimum": 1}),
            json!(0),
            "spec: Invalid value: 0: spec in body should be greater than or equal to 1",
        ),
        (
            json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true}),
            json!(1),
            "spec: Invalid value: 1: spec in body should be greater than 1",
        ),
        (
            json!({"type": "number", "maximum": 1.5, "exclusiveMaximum": true}),
            json!(1.5),
            "spec: Invalid value: 1.5: spec in body should be less than 1.5",
        ),
        (
            json!({"type": "integer", "multipleOf": 3}),
            json!(4),
            "spec: Invalid value: 4: spec in body should be a multiple of 3",
        ),
        (
            json!({"type": "string", "minLength": 2}),
            json!("é"),
            "spec: Invalid value: \"é\": spec in body should be at least 2 chars long",
        ),
        (json!({"type": "string", "maxLength": 2}), json!("abc"), "spec: Too long: may not be more than 2 bytes"),
        (
            json!({"type": "string", "pattern": "^a+$"}),
            json!("b"),
            "spec: Invalid value: \"b\": spec in body should match '^a+$'",
        ),
        (
            json!({"type": "string", "enum": ["A", "B"]}),
            json!("C"),
            "spec: Unsupported value: \"C\": supported values: \"A\", \"B\"",
        ),
        (
            json!({"type": "string", "format": "ipv4"}),
            json!("x"),
            "spec: Invalid value: \"x\": spec in body must be of type ipv4: \"x\"",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
            json!(["a", "b"]),
            "spec: Too many: 2: must have at most 1 item",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "minItems": 1}),
            json!([]),
            "spec: Invalid value: 0: spec in body should have at least 1 items",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}),
            json!(["a", "a"]),
            "spec[1]: Duplicate value: \"a\"",
        ),
        (
            json!({"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}, "required": ["k"]}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}),
            json!([{"k": "a"}, {"k": "a"}]),
            "spec[1]: Duplicate value: {\"k\":\"a\"}",
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 1}),
            json!({"a": "1", "b": "2"}),
            "spec: Too many: 2: must have at most 1 item",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}),
            json!({}),
            "spec.a: Required value",
        ),
        (
            json!({"type": "integer"}),
            json!("string"),
            "spec: Invalid value: \"string\": spec in body must be of type integer: \"string\"",
        ),
        (
            json!({"type": "string"}),
            json!(null),
            "spec: Invalid value: \"null\": spec in body must be of type string: \"null\"",
        ),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!(true),
            "spec: Invalid value: \"boolean\": spec in body must be of type integer,string: \"boolean\"",
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "integer"}}),
            json!({"a": 1, "b": "x"}),
            "spec.b: Invalid value: \"string\": spec.b in body must be of type integer: \"string\"",
        ),
        (
            json!({"type": "integer", "anyOf": [{"minimum": 5}, {"enum": [1]}]}),
            json!(2),
            "spec: Invalid value: \"\": \"spec\" must validate at least one schema (anyOf)",
        ),
        (
            json!({"type": "integer", "oneOf": [{"minimum": 5}, {"minimum": 6}]}),
            json!(7),
            "spec: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found 2 valid",
        ),
        (
            json!({"type": "integer", "allOf": [{"minimum": 5}]}),
            json!(1),
            "spec: Invalid value: \"\": \"spec\" must validate all the schemas (allOf)",
        ),
        (
            json!({"type": "integer", "not": {"minimum": 5}}),
            json!(6),
            "spec: Invalid value: \"\": \"spec\" must not validate the schema (not)",
        ),
    ];
    for (spec, value, expected) in table {
        let found = texts(&schema(spec.clone()), value.clone(), None);
        assert!(found.iter().any(|t| t == expected), "{spec} {value}: {found:?}");
    }
    let fine = [
        (json!({"type": "string", "nullable": true}), json!(null)),
        (json!({"type": "integer", "maximum": 10, "multipleOf": 2}), json!(10)),
        (json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}), json!("5%")),
        (json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}), json!({"any": ["thing"]})),
        (json!({"type": "number"}), json!(1)),
    ];
    for (spec, value) in fine {
        assert_eq!(texts(&schema(spec), value, None), Vec::<String>::new());
    }
}

#[test]
fn what_has_not_changed_is_not_held_against_an_update() {
    let schema = schema(
        json!({"type": "object", "properties": {"a": {"type": "integer", "maximum": 1}, "b": {"type": "string"}}}),
    );
    let old = json!({"a": 9, "b": "x"});
    assert!(texts(&schema, json!({"a": 9, "b": "y"}), Some(old.clone())).is_empty());
    assert_eq!(texts(&schema, json!({"a": 8, "b": "x"}), Some(old)).len(), 1);
}

#[test]
fn pruning_and_defaulting_follow_the_schema() {
    let schema = schema(json!({"type": "object", "properties": {
        "size": {"type": "integer", "default": 3},
        "mode": {"type": "string", "default": "fast"},
        "nested": {"type": "object", "default": {}, "properties": {"deep": {"type": "boolean", "default": true}}},
        "nothing": {"type": "string", "nullable": true},
        "items": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "TCP"}}}},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"known": {"type": "object", "properties": {"a": {"type": "string"}}}}},
        "embedded": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
        "bounded": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"v": {"type": "integer", "default": 1}}}}
    }}));
    let mut value = json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a"}, "junk": 1, "spec": {
        "junk": 1, "mode": null, "nothing": null,
        "items": [{}, {"p": "UDP", "junk": 1}],
        "open": {"kept": {"x": 1}, "known": {"a": "b", "junk": 1}},
        "bounded": {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"junk": 1}, "junk": 1},
        "map": {"k": {"junk": 1}}
    }});
    let unknown: Vec<String> = schema.check(&value).unknown.iter().map(|p| p.as_str().to_owned()).collect();
    assert_eq!(
        unknown,
        [
            "junk",
            "spec.junk",
            "spec.items[1].junk",
            "spec.open.known.junk",
            "spec.bounded.spec.junk",
            "spec.bounded.junk",
            "spec.map.k.junk"
        ]
    );
    schema.prune(&mut value);
    schema.default(&mut value);
    assert_eq!(
        value,
        json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a"}, "spec": {
            "size": 3, "mode": "fast", "nothing": null, "nested": {"deep": true},
            "items": [{"p": "TCP"}, {"p": "UDP"}],
            "open": {"kept": {"x": 1}, "known": {"a": "b"}},
            "bounded": {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {}},
            "map": {"k": {"v": 1}}
        }})
    );
    assert!(schema.check(&value).unknown.is_empty());
}

#[test]
fn what_is_not_structural_is_refused_by_name() {
    let refuse = |spec: Value| -> String {
        let whole = json!({"type": "object", "properties": {"spec": spec}});
        from_openapi_v3(&whole).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let at = "properties[spec]";
    let table = [
        (json!({}), format!("{at}.type: Required value: must not be empty for specified object fields")),
        (json!({"type": "thing"}), format!("{at}.type: Unsupported value: \"thing\"")),
        (json!({"type": "array"}), format!("{at}.items: Required value")),
        (json!({"type": "array", "items": [{"type": "string"}]}), "must be a schema object and not an array".into()),
        (json!({"type": "object", "$ref": "x"}), format!("{at}.$ref: Forbidden")),
        (json!({"type": "object", "patternProperties": {}}), format!("{at}.patternProperties: Forbidden")),
        (json!({"type": "object", "additionalProperties": false}), format!("{at}.additionalProperties: Forbidden")),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": true}),
            "mutual exclusive".into(),
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}),
            format!("{at}.uniqueItems: Forbidden"),
        ),
        (json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false}), "must be true or undefined".into()),
        (json!({"type": "string", "x-kubernetes-int-or-string": true}), format!("{at}.type: Forbidden")),
        (json!({"type": "string", "pattern": "("}), format!("{at}.pattern: Invalid value")),
        (json!({"type": "string", "pattern": "(((a{1000}){1000}){1000})"}), format!("{at}.pattern: Invalid value")),
        (
            json!({"type": "integer", "default": "x"}),
            format!("{at}.default: Invalid value: \"x\": must be of type integer"),
        ),
        (json!({"type": "integer", "default": 5, "maximum": 1}), "must validate".into()),
        (
            json!({"type": "object", "default": {"junk": 1}, "properties": {"a": {"type": "string"}}}),
            "must not have unknown fields".into(),
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "object"}}, "anyOf": [{"properties": {"a": {"type": "object"}}}]}),
            "must be empty to be structural".into(),
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "anyOf": [{"properties": {"b": {"minLength": 1}}}]}),
            format!("{at}.anyOf[0].properties[b]: Required value: must be specified outside"),
        ),
        (json!({"type": "integer", "anyOf": [{"type": "integer"}]}), format!("{at}.anyOf[0].type: Forbidden")),
        (json!({"type": "object", "anyOf": [{"default": 1}]}), "must be empty to be structural".into()),
        (
            json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "bag"}),
            "Unsupported value: \"bag\"".into(),
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "map"}),
            "x-kubernetes-list-map-keys: Required value".into(),
        ),
        (
            json!({"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"]}),
            "must have a default or be a required property".into(),
        ),
        (
            json!({"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["b"]}),
            "names of item properties".into(),
        ),
        (
            json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"}),
            "set lists must hold scalars".into(),
        ),
        (json!({"type": "string", "x-kubernetes-embedded-resource": true}), "must be object".into()),
        (json!({"type": "object", "x-kubernetes-map-type": "odd"}), "Unsupported value: \"odd\"".into()),
        (json!({"type": "object", "x-kubernetes-validations": [{"rule": ""}]}), "rule: Required value".into()),
        (json!({"type": "object", "x-kubernetes-validations": [{"rule": "self. =="}]}), "compilation failed".into()),
        (
            json!({"type": "object", "x-kubernetes-validations": [{"rule": "selff.a == 1"}]}),
            "undeclared reference to 'selff'".into(),
        ),
        (
            json!({"type": "object", "x-kubernetes-validations": [{"rule": "launch(self)"}]}),
            "undeclared reference to 'launch'".into(),
        ),
        (
            json!({"type": "object", "x-kubernetes-validations": [{"rule": "true", "reason": "Odd"}]}),
            "Unsupported value: \"Odd\"".into(),
        ),
        (
            json!({"type": "object", "x-kubernetes-validations": [{"rule": "true", "fieldPath": ".a"}]}),
            "fieldPath".into(),
        ),
    ];
    for (spec, words) in table {
        let found = refuse(spec.clone());
        assert!(found.contains(&words), "{spec}: {found}");
    }
    assert!(from_openapi_v3(&json!({"type": "string"})).is_err());
    assert!(from_openapi_v3(&json!({})).is_err());
    assert!(from_openapi_v3(&json!(null)).is_err());
    let mut deep = json!({"type": "string"});
    for _ in 0..110 {
        deep = json!({"type": "array", "items": deep});
    }
    assert!(from_openapi_v3(&json!({"type": "object", "properties": {"a": deep}})).is_err());
}

fn rules(properties: Value, rules: Value) -> Schema {
    schema(json!({"type": "object", "properties": properties, "x-kubernetes-validations": rules}))
}

/// The examples of Kubernetes' documentation of validation rules, and their kin.
#[test]
fn rules_hold_as_documented() {
    let int = || json!({"type": "integer"});
    let strings = || json!({"type": "array", "items": {"type": "string"}});
    let map = || json!({"type": "object", "additionalProperties": {"type": "string"}});
    let table = [
        (json!({"min": int(), "max": int()}), "self.min <= self.max", json!({"min": 1, "max": 2}), true),
        (json!({"min": int(), "max": int()}), "self.min <= self.max", json!({"min": 3, "max": 2}), false),
        (json!({"min": int(), "max": int()}), "!has(self.min) || self.min > 0", json!({"max": 2}), true),
        (
            json!({"stateCounts": map()}),
            "'Available' in self.stateCounts",
            json!({"stateCounts": {"Available": "1"}}),
            true,
        ),
        (json!({"stateCounts": map()}), "'Available' in self.stateCounts", json!({"stateCounts": {"x": "1"}}), false),
        (
            json!({"a": strings(), "b": strings()}),
            "(size(self.a) == 0) != (size(self.b) == 0)",
            json!({"a": [], "b": ["x"]}),
            true,
        ),
        (json!({"names": strings()}), "self.names.all(n, n.startsWith('x-'))", json!({"names": ["x-a", "x-b"]}), true),
        (json!({"names": strings()}), "self.names.all(n, n.startsWith('x-'))", json!({"names": ["x-a", "b"]}), false),
        (json!({"names": strings()}), "self.names.exists_one(n, n == 'a')", json!({"names": ["a", "b"]}), true),
        (json!({"names": strings()}), "self.names.filter(n, n != 'a').size() == 1", json!({"names": ["a", "b"]}), true),
        (json!({"names": strings()}), "self.names.map(n, n + '!') == ['a!']", json!({"names": ["a"]}), true),
        (json!({"m": map()}), "self.m.all(k, k.matches('^[a-z]+$'))", json!({"m": {"abc": "1"}}), true),
        (json!({"m": map()}), "self.m.all(k, k.matches('^[a-z]+$'))", json!({"m": {"Abc": "1"}}), false),
        (json!({"s": {"type": "string"}}), "self.s.size() == 1", json!({"s": "é"}), true),
        (json!({"s": {"type": "string"}}), "type(self.s) == string", json!({"s": "x"}), true),
        (
            json!({"my_field": int(), "a-b": int()}),
            "self.my_field == self.a__dash__b",
            json!({"my_field": 1, "a-b": 1}),
            true,
        ),
        (json!({"namespace": {"type": "string"}}), "self.__namespace__ == 'x'", json!({"namespace": "x"}), true),
        (
            json!({"t": {"type": "string", "format": "date-time"}}),
            "self.t > timestamp('2024-01-01T00:00:00Z')",
            json!({"t": "2025-01-01T00:00:00Z"}),
            true,
        ),
        (json!({"d": {"type": "string", "format": "duration"}}), "self.d <= duration('1h')", json!({"d": "30m"}), true),
        (
            json!({"p": {"x-kubernetes-int-or-string": true}}),
            "type(self.p) == int ? self.p > 0 : self.p.endsWith('%')",
            json!({"p": "5%"}),
            true,
        ),
        (
            json!({"q": {"type": "string"}}),
            "isQuantity(self.q) && quantity(self.q).isGreaterThan(quantity('1Gi'))",
            json!({"q": "2Gi"}),
            true,
        ),
        (
            json!({"u": {"type": "string"}}),
            "isURL(self.u) && url(self.u).getHost() == 'a.b'",
            json!({"u": "https://a.b/c"}),
            true,
        ),
        (
            json!({"ip": {"type": "string"}}),
            "isIP(self.ip) && ip(self.ip).family() == 4",
            json!({"ip": "10.0.0.1"}),
            true,
        ),
        (json!({"n": {"type": "number"}}), "self.n < 1.5", json!({"n": 1}), true),
        (json!({"b": {"type": "boolean"}}), "!self.b || has(self.c)", json!({"b": true}), false),
        (
            json!({"o": {"type": "object", "properties": {"x": int()}}}),
            "self.?o.x.orValue(-1) == 7",
            json!({"o": {"x": 7}}),
            true,
        ),
        (json!({"names": strings()}), "self.names[?5].orValue('none') == 'none'", json!({"names": ["a"]}), true),
        (
            json!({"o": {"type": "object", "properties": {"x": int()}}}),
            "self.?o.?x.hasValue()",
            json!({"o": {}}),
            false,
        ),
        (json!({"o": {"type": "object", "properties": {"x": int()}}}), "self.?o.?x.orValue(0) >= 0", json!({}), true),
    ];
    for (properties, rule, value, holds) in table {
        let schema = rules(properties, json!([{"rule": rule, "message": "no"}]));
        let found = texts(&schema, value.clone(), None);
        let expected: &[&str] = if holds { &[] } else { &["spec: Invalid value: \"object\": no"] };
        assert_eq!(found, expected, "{rule} {value}");
    }
}

#[test]
fn rules_say_what_their_author_wants_said() {
    let int = json!({"a": {"type": "integer"}});
    let say = |rule: Value| -> String { texts(&rules(int.clone(), json!([rule])), json!({"a": 1}), None).join("; ") };
    assert_eq!(say(json!({"rule": " self.a > 1 "})), "spec: Invalid value: \"object\": failed rule: self.a > 1");
    assert_eq!(say(json!({"rule": "self.a > 1", "message": "m"})), "spec: Invalid value: \"object\": m");
    assert_eq!(
        say(json!({"rule": "self.a > 1", "message": "m", "messageExpression": "'a is ' + string(self.a)"})),
        "spec: Invalid value: \"object\": a is 1"
    );
    assert_eq!(
        say(json!({"rule": "self.a > 1", "message": "m", "messageExpression": "''"})),
        "spec: Invalid value: \"object\": m"
    );
    assert_eq!(
        say(json!({"rule": "self.a > 1", "message": "m", "fieldPath": ".a"})),
        "spec.a: Invalid value: \"object\": m"
    );
    assert_eq!(
        say(json!({"rule": "self.a > 1", "message": "m", "reason": "FieldValueForbidden"})),
        "spec: Forbidden: m"
    );
    assert_eq!(
        say(json!({"rule": "self.a > 1", "message": "m", "reason": "FieldValueRequired", "fieldPath": "['a']"})),
        "spec.a: Required value: m"
    );
    assert!(say(json!({"rule": "self.missing > 1"})).contains("rule evaluation error"));
    assert!(say(json!({"rule": "self.a"})).contains("must evaluate to a bool"));
}

#[test]
fn transition_rules_compare_with_what_was() {
    let field = |rule: Value| {
        schema(json!({"type": "object", "properties": {"a": {"type": "integer", "x-kubernetes-validations": [rule]}}}))
    };
    let immutable = field(json!({"rule": "self == oldSelf", "message": "immutable"}));
    assert!(texts(&immutable, json!({"a": 1}), None).is_empty());
    assert!(texts(&immutable, json!({"a": 1}), Some(json!({"a": 1}))).is_empty());
    assert!(texts(&immutable, json!({"a": 1}), Some(json!({}))).is_empty());
    assert_eq!(
        texts(&immutable, json!({"a": 2}), Some(json!({"a": 1}))),
        ["spec.a: Invalid value: \"integer\": immutable"]
    );

    let optional = field(
        json!({"rule": "oldSelf.hasValue() ? self >= oldSelf.value() : self == 0", "optionalOldSelf": true, "message": "grow from 0"}),
    );
    assert!(texts(&optional, json!({"a": 0}), None).is_empty());
    assert_eq!(texts(&optional, json!({"a": 1}), None).len(), 1);
    assert!(texts(&optional, json!({"a": 5}), Some(json!({"a": 4}))).is_empty());
    assert_eq!(texts(&optional, json!({"a": 3}), Some(json!({"a": 4}))).len(), 1);

    let list = schema(
        json!({"type": "object", "properties": {"l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
        "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v", "message": "no way back"}]}}}}),
    );
    let old = json!({"l": [{"k": "a", "v": 5}, {"k": "b", "v": 5}]});
    assert!(texts(&list, json!({"l": [{"k": "b", "v": 6}, {"k": "c", "v": 0}]}), Some(old.clone())).is_empty());
    assert_eq!(
        texts(&list, json!({"l": [{"k": "b", "v": 4}]}), Some(old)),
        ["spec.l[0]: Invalid value: \"object\": no way back"]
    );
}

#[test]
fn unchanged_values_are_excused_from_new_rules() {
    let schema = rules(json!({"a": {"type": "integer"}}), json!([{"rule": "self.a > 1", "message": "m"}]));
    assert!(texts(&schema, json!({"a": 1}), Some(json!({"a": 1}))).is_empty());
    assert_eq!(texts(&schema, json!({"a": 0}), Some(json!({"a": 1}))).len(), 1);
}

#[test]
fn rules_wait_until_the_object_is_otherwise_valid() {
    let schema = rules(json!({"a": {"type": "integer"}}), json!([{"rule": "self.a > 1"}]));
    let found = texts(&schema, json!({"a": "x"}), None);
    assert_eq!(found.len(), 2);
    assert!(found[1].contains("some validation rules were not checked"), "{found:?}");
}

#[test]
fn a_hostile_rule_cannot_hang_the_server() {
    let properties = || json!({"l": {"type": "array", "items": {"type": "string"}}, "s": {"type": "string"}});
    let list: Vec<String> = (0..2_000).map(|n| format!("item-{n}")).collect();
    let value = json!({"l": list, "s": "x".repeat(100_000)});
    let hostile = [
        "self.l.all(a, self.l.all(b, self.l.all(c, a != b + c)))",
        "lists.range(100000000).all(x, x >= 0)",
        "lists.range(10000).all(x, lists.range(10000).all(y, x + y >= 0))",
        "self.s.replace('', self.s).size() > 0",
        "self.s.split('').all(a, self.s.split('').all(b, a == b || true))",
        "[self.s].map(a, a + a + a + a).map(a, a + a + a + a).map(a, a + a + a + a).map(a, a + a + a + a).map(a, a + a + a + a).size() > 0",
        "self.l.map(a, self.l).map(a, a.map(b, self.l)).size() > 0",
    ];
    for rule in hostile {
        let schema = rules(properties(), json!([{"rule": rule, "message": "said no"}]));
        let begun = std::time::Instant::now();
        let found = texts(&schema, value.clone(), None);
        assert_eq!(found.len(), 1, "{rule}");
        assert!(begun.elapsed().as_secs() < 10, "{rule} took {:?}", begun.elapsed());
    }
    let whole = |rule: String| json!({"type": "object", "x-kubernetes-validations": [{"rule": rule}]});
    for rule in [
        "(".repeat(10_000),
        "1+".repeat(5_000) + "1 > 0",
        "[".repeat(200) + &"]".repeat(200),
        "true ? true : ".repeat(500) + "true",
        "x".repeat(100_000),
        "self".to_owned() + &".a".repeat(1_000),
    ] {
        assert!(from_openapi_v3(&whole(rule.clone())).is_err(), "{}", &rule[..20]);
    }
    for fine in [
        "true && ".repeat(1_000) + "true",
        "!".repeat(10_000) + "true",
        "1+".repeat(100) + "1 > 0",
        "(".repeat(30) + "true" + &")".repeat(30),
    ] {
        let schema = from_openapi_v3(&whole(fine.clone())).unwrap_or_else(|e| panic!("{fine}: {e:?}"));
        assert!(schema.validate(&json!({}), None).is_empty(), "{fine}");
    }
}

#[test]
fn metadata_may_be_restricted_by_name() {
    let schema = from_openapi_v3(&json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}}}})).unwrap();
    assert_eq!(schema.validate(&json!({"metadata": {"name": "long"}}), None).len(), 1);
    assert!(schema.validate(&json!({"metadata": {"name": "ok", "labels": {"a": "b"}}}), None).is_empty());
    assert!(schema.check(&json!({"metadata": {"labels": {"a": 1}}})).errors.len() == 1);
}

#[test]
fn openapi_of_a_custom_resource_is_what_its_author_wrote() {
    let schema = schema(json!({"type": "object", "description": "d"}));
    let openapi = schema.to_openapi();
    assert_eq!(openapi["properties"]["spec"], json!({"type": "object", "description": "d"}));
    assert_eq!(
        openapi["properties"]["metadata"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    );
}
