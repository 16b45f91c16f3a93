use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::authorizer::{Authorizer, Decision, Question};
use super::*;

const NAMES: &[&str] = &["object", "oldObject", "request", "authorizer"];

fn evaluate(text: &str) -> Result<Answer, String> {
    let mut scope = Scope::default();
    scope.bind("object", &json!({"metadata": {"name": "a", "namespace": "default", "labels": {"a-b/c": "d"}}, "n": 3}));
    scope.bind("oldObject", &Value::Null);
    scope.bind("request", &json!({"operation": "CREATE", "namespace": "default", "dryRun": false}));
    struct Pods;
    impl Authorizer for Pods {
        fn decide(&self, question: &Question) -> Decision {
            let allowed = question.resource == "pods" && question.verb == "create" && question.namespace == "default";
            let who = question.service_account.as_ref().map(|(_, name)| name.clone());
            Decision { allowed, reason: who.unwrap_or_else(|| question.path.clone().unwrap_or_default()) }
        }
    }
    let request = Question { resource: "pods".into(), namespace: "default".into(), ..Question::default() };
    scope.bind_authorizer(Arc::new(Pods), request);
    Expression::typed(text, &Environment::of(NAMES))?.0.evaluate(&scope, &mut CONDITIONS_BUDGET.clone())
}

#[test]
fn expressions_see_requests_as_they_are_sent() {
    for (text, expected) in [
        ("object.metadata.name == 'a'", true),
        // Names that are words of CEL are not escaped here, as they are in rules of schemas.
        ("request.namespace == 'default' && object.metadata.namespace == request.namespace", true),
        ("object.metadata.labels['a-b/c'] == 'd'", true),
        ("has(object.metadata.labels) && 'x' in object.metadata.labels", false),
        ("oldObject == null", true),
        ("request.operation in ['UPDATE', 'DELETE']", false),
        ("object.?metadata.?annotations[?'x'].orValue('none') == 'none'", true),
        ("object.n > 2", true),
        ("authorizer.requestResource.check('create').allowed()", true),
        ("authorizer.requestResource.check('delete').allowed()", false),
        ("authorizer.group('').resource('pods').namespace('default').name('x').check('create').allowed()", true),
        ("authorizer.group('apps').resource('deployments').subresource('scale').check('create').allowed()", false),
        ("authorizer.path('/healthz').check('get').reason() == '/healthz'", true),
        ("authorizer.serviceAccount('default', 'bot').group('').resource('pods').check('get').reason() == 'bot'", true),
        ("authorizer.path('/healthz').check('get').errored()", false),
    ] {
        assert_eq!(evaluate(text), Ok(Answer::Bool(expected)), "{text}");
    }
    assert_eq!(evaluate("'deployment ' + object.metadata.name"), Ok(Answer::Text("deployment a".into())));
    assert_eq!(evaluate("object.n + 1"), Ok(Answer::Other("int".into())));
}

#[test]
fn what_is_no_expression_does_not_compile() {
    for (text, part) in [
        ("object.metadata.name == '", "compilation failed: ERROR: <input>:1:25: Syntax error"),
        ("[] bad expression", "Syntax error: extraneous input 'bad' expecting <EOF>"),
        ("unknown.field == 1", "undeclared reference to 'unknown' (in container '')"),
        ("object.steal()", "undeclared reference to 'steal' (in container '')"),
        ("1 + 'a'", "found no matching overload for '_+_' applied to '(int, string)'"),
        ("'a'.startsWith(1)", "found no matching overload for 'startsWith' applied to 'string.(int)'"),
        ("request.operating == 'CREATE'", "undefined field 'operating'"),
        ("size(request.name) == 'x'", "applied to '(int, string)'"),
        ("[1, 'a'].size() == 2", "expected type 'int' but found 'string'"),
        ("1.all(x, true)", "cannot be range of a comprehension"),
        ("object.x.map(object.y, 1) == []", "argument must be a simple name"),
        ("namespace == 'a'", "reserved identifier: namespace"),
        ("Object{} == null", "undeclared reference to 'Object'"),
        ("has(object)", "invalid argument to has() macro"),
        ("'a string'", "must evaluate to bool"),
        ("object.a ? 'x' : 'y'", "must evaluate to bool"),
        ("authorizer.group('').check('get').allowed()", "found no matching overload for 'check'"),
    ] {
        let error = Expression::condition(text, NAMES).err().unwrap_or_default();
        assert!(error.contains(part), "{text}: {error}");
    }
    assert!(Expression::condition("authorizer.path('/x').check('get').allowed()", &["object"]).is_err());
    let error = Expression::condition("true &&\n  object.a > request.nome", NAMES).unwrap_err();
    let expected = "compilation failed: ERROR: <input>:2:21: undefined field 'nome'\n |   object.a > request.nome\n | ....................^";
    assert_eq!(error, expected);
}

#[test]
fn what_fails_at_evaluation_says_so_and_what_costs_too_much_is_ended() {
    assert_eq!(evaluate("object.missing == 1"), Err("no such key: missing".into()));
    assert_eq!(evaluate("'a' + object.n"), Err("no such overload".into()));
    assert_eq!(evaluate("[1, 2][object.n] == 1"), Err("index out of bounds: 3".into()));
    assert_eq!(evaluate("1 / (object.n - 3) == 1"), Err("division by zero".into()));
    let mut scope = Scope::default();
    scope.bind("object", &json!({"list": (0..500).collect::<Vec<_>>()}));
    let compiled = |text| Expression::condition(text, &["object"]).unwrap();
    let cubic = compiled("object.list.all(a, object.list.all(b, object.list.all(c, a + b + c >= 0)))");
    let mut budget = CONDITIONS_BUDGET;
    let cancelled = Err("operation cancelled: actual cost limit exceeded".to_owned());
    assert_eq!(cubic.evaluate(&scope, &mut budget), cancelled);
    assert_eq!(budget, CONDITIONS_BUDGET - CALL_BUDGET);
    // Nothing takes it back, as it would an error.
    let taken_back = compiled("object.list.all(a, object.list.all(b, object.list.all(c, a + b + c >= 0))) || true");
    assert_eq!(taken_back.evaluate(&scope, &mut budget), cancelled);
    assert_eq!(cubic.evaluate(&scope, &mut budget), Err(OUT_OF_BUDGET.into()));
    assert_eq!(budget, 0);
    assert_eq!(compiled("object.list == []").evaluate(&scope, &mut budget), Err(OUT_OF_BUDGET.into()));
}

/// The examples of Kubernetes' documentation of CEL, and of its libraries, and the semantics of CEL's specification.
#[test]
fn expressions_come_to_what_is_documented() {
    for text in [
        // Kubernetes: examples of the language.
        "object.minReplicas <= object.replicas && object.replicas <= object.maxReplicas",
        "'Available' in object.stateCounts",
        "(object.list1.size() == 0) != (object.list2.size() == 0)",
        "object.envars.filter(e, e.name == 'MY_ENV').all(e, e.value.matches('^[a-zA-Z]*$'))",
        "timestamp(object.created) + duration(object.ttl) < timestamp(object.expired)",
        "object.health.startsWith('ok')",
        "object.widgets.exists(w, w.key == 'x' && w.foo < 10)",
        "type(object.port) == string ? object.port == '99%' : object.port == 42",
        "object.metadata.name == 'singleton'",
        "object.set1.all(e, !(e in object.set2))",
        "object.names.size() == object.details.size() && object.names.all(n, n in object.details)",
        // Lists.
        "[1, 2, 3].isSorted() && !['b', 'a'].isSorted() && [].isSorted()",
        "[1, 3].sum() == 4 && [1, 3].min() == 1 && [1, 3].max() == 3",
        "[1, 2, 2, 3].indexOf(2) == 1 && [1, 2, 2, 3].lastIndexOf(2) == 2",
        "[1, 1, 2].distinct() == [1, 2] && [[1], [2, 3]].flatten() == [1, 2, 3]",
        "lists.range(3) == [0, 1, 2] && [1, 2, 3].slice(1, 3) == [2, 3] && [3, 1].sort() == [1, 3]",
        "[1, 2].first().value() == 1 && ![].last().hasValue() && [1, 2].reverse() == [2, 1]",
        "[1, 2] + [3] == [1, 2, 3] && 2 in [1, 2]",
        // Regular expressions and text.
        "'abc 123'.find('[0-9]+') == '123' && '123 abc 456'.findAll('[0-9]+') == ['123', '456']",
        "'hello'.charAt(1) == 'e' && 'hello'.indexOf('l') == 2 && 'a,b'.split(',') == ['a', 'b']",
        "'Ab'.lowerAscii() == 'ab' && ' x '.trim() == 'x' && ['a', 'b'].join('-') == 'a-b'",
        "'hello hello'.replace('he', 'we') == 'wello wello' && 'hello hello'.replace('he', 'we', 1) == 'wello hello'",
        "'tacocat'.substring(4) == 'cat' && 'tacocat'.substring(0, 4) == 'taco' && 'abc'.reverse() == 'cba'",
        "'%s has %d'.format(['a', 2]) == 'a has 2'",
        r#"size('é') == 1 && 'a\n'.size() == 2 && r'a\n'.size() == 3 && b'a' == bytes('a') && "\u00e9" == 'é'"#,
        // URLs.
        "url('https://example.com:80/path?k=a&k=b').getHost() == 'example.com:80'",
        "url('https://example.com/with space').getEscapedPath() == '/with%20space' && isURL('https://a/b') && !isURL('../a')",
        "url('https://example.com/path?k=a&k=b').getQuery()['k'] == ['a', 'b']",
        // Addresses.
        "isIP('192.0.2.1') && ip('2001:db8::1').family() == 6 && ip.isCanonical('127.0.0.1') && ip('127.0.0.1').isLoopback()",
        "cidr('192.168.0.0/24').containsIP(ip('192.168.0.1')) && !cidr('192.168.0.0/24').containsIP('192.168.1.1')",
        "cidr('192.168.0.0/24').containsCIDR('192.168.0.0/25') && cidr('192.168.0.1/24').masked() == cidr('192.168.0.0/24')",
        "cidr('192.168.0.0/24').prefixLength() == 24 && string(cidr('192.168.0.0/24').ip()) == '192.168.0.0' && !isCIDR('x')",
        // Quantities.
        "quantity('500000G').isInteger() && quantity('50k').asInteger() == 50000 && isQuantity('1.3Gi') && !isQuantity('x')",
        "quantity('50k').add('20k' == '' ? quantity('0') : quantity('20k')) == quantity('70k')",
        "quantity('50k').sub(20000) == quantity('30k') && quantity('200M').compareTo(quantity('0.2G')) == 0",
        "quantity('150Mi').isGreaterThan(quantity('100Mi')) && quantity('50M').isLessThan(quantity('100M'))",
        // Semantic versions.
        "isSemver('1.0.0') && !isSemver('v1.0') && isSemver('v1.0', true) && semver('1.2.3').minor() == 2",
        "semver('1.2.3').isLessThan(semver('2.0.0')) && semver('1.2.3').compareTo(semver('1.2.3')) == 0",
        // Formats.
        "!format.dns1123Label().validate('my-label-name').hasValue()",
        "format.dns1123Label().validate('contains a space').value().size() > 0",
        "format.named('dns1123Label').hasValue() && !format.named('nothing').hasValue()",
        // Sets.
        "sets.contains([1, 2, 3], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && sets.intersects([1], [1, 2])",
        // Two variables.
        "{'a': 1, 'b': 2}.all(k, v, k.size() == 1 && v > 0) && [1, 2].exists(i, v, i == 1 && v == 2)",
        "[1, 2].existsOne(i, v, i == 0) && {'a': 1}.transformList(k, v, k + string(v)) == ['a1']",
        "[1, 2, 3].transformList(i, v, i > 0, v * 2) == [4, 6] && {'a': 1}.transformMap(k, v, v + 1) == {'a': 2}",
        "{'a': 'b'}.transformMapEntry(k, v, {v: k}) == {'b': 'a'} && [5].transformMap(i, v, v) == {0: 5}",
        // Optionals.
        "object.?nothing.?more.orValue('x') == 'x' && object.?metadata.name.value() == 'singleton'",
        "object.list1[?7].orValue(0) == 0 && optional.none().or(optional.of(1)).value() == 1",
        "optional.of(2).optMap(x, x * 2).value() == 4 && optional.of(2).optFlatMap(x, optional.none()).hasValue() == false",
        "[?optional.none(), ?optional.of(1)] == [1] && {?'a': optional.none(), 'b': 1} == {'b': 1}",
        "!optional.ofNonZeroValue('').hasValue() && has(object.?metadata.name) && !has(object.?nothing.name)",
        // Errors that something else decides over, on either side.
        "object.nothing == 1 || true",
        "true || object.nothing == 1",
        "!(object.nothing == 1 && false)",
        "[object, {'nothing': 1}].exists(o, o.nothing == 1)",
        "![object, {'nothing': 1}].all(o, o.nothing == 2)",
        // Numbers.
        "1 == dyn(1.0) && dyn(1u) == 1 && 1 < 1.5 && 2u > 1 && 7 / 2 == 3 && -7 % 3 == -1 && 0x1F == 31",
        "int('12') == 12 && double('1.5') == 1.5 && string(1) == '1' && uint(3) == 3u && bool('true') && int(2.9) == 2",
        "-9223372036854775808 < 0 && 1e3 == 1000.0 && math.greatest(1, 3) == 3 && math.abs(-2) == 2",
        // Types and times.
        "type(1) == int && type('') == string && type(null) == null_type && type([]) == list && type(type(1)) == type",
        "timestamp('2024-01-01T01:00:00Z').getHours() == 1 && duration('1h') + duration('30m') == duration('90m')",
        "timestamp('2024-01-02T00:00:00Z') - timestamp('2024-01-01T00:00:00Z') == duration('24h')",
        "type(timestamp('2024-01-02T00:00:00Z')) == google.protobuf.Timestamp",
        // Names.
        "object.metadata.namespace == 'ns' && object.metadata.__namespace__ == 'ns' && object.a__dash__b == 1 && object.`a-b` == 1",
        "cel.bind(x, object.replicas, x + x) == 6 && base64.decode('aGk=') == b'hi' && jsonpatch.escapeKey('a/b~c') == 'a~1b~0c'",
        "[1, 2].map(x, x > 1, x * 2) == [4] && [[1, 2], [3]].map(x, x.map(y, y + x[0])) == [[2, 3], [6]]",
        "object.metadata.name.size() > 3 ? true : object.nothing",
        "!!true && !(1 > 2) && 1 - -1 == 2 && (2 + 3) * 4 == 20 && 2 + 3 * 4 == 14 // the end",
    ] {
        let mut scope = Scope::default();
        scope.bind("object", &json!({"minReplicas": 1, "replicas": 3, "maxReplicas": 5, "stateCounts": {"Available": 1},
            "list1": [], "list2": [1], "envars": [{"name": "MY_ENV", "value": "abc"}, {"name": "B", "value": "1"}],
            "created": "2024-01-01T00:00:00Z", "ttl": "1h", "expired": "2024-01-02T00:00:00Z", "health": "ok!", "widgets": [{"key": "x", "foo": 1}], "port": 42, "metadata": {"name": "singleton",
            "namespace": "ns"}, "set1": [1], "set2": [2], "names": ["a"], "details": {"a": 1}, "a-b": 1}));
        let (expression, result) =
            Expression::typed(text, &Environment::of(&["object"])).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(result.is_dyn() || result == Type::Bool, "{text}: {result}");
        assert_eq!(expression.evaluate(&scope, &mut BUDGET.clone()), Ok(Answer::Bool(true)), "{text}");
    }
}

#[test]
fn variables_are_worked_out_when_asked_for_and_once() {
    let mut environment = Environment::of(&["object"]).composing();
    let mut scope = Scope::default();
    scope.bind("object", &json!({"n": 2, "list": (0..1000).collect::<Vec<_>>()}));
    for (name, text) in [
        ("double", "object.n * 2"),
        ("broken", "object.missing"),
        ("sum", "object.list.filter(x, x >= 0).size() + variables.double"),
        ("text", "'n is ' + string(object.n)"),
    ] {
        let (expression, of) = Expression::typed(text, &environment).unwrap();
        environment.compose(name, of);
        scope.compose(name, &Arc::new(expression));
    }
    let evaluate = |text: &str| {
        let mut budget = BUDGET;
        let answer = Expression::typed(text, &environment).map(|(e, _)| e.evaluate(&scope, &mut budget));
        (answer, BUDGET - budget)
    };
    assert_eq!(evaluate("variables.double == 4").0, Ok(Ok(Answer::Bool(true))));
    assert_eq!(evaluate("object.n == 2 || variables.broken").0, Ok(Ok(Answer::Bool(true))));
    let failed = "composited variable \"broken\" fails to evaluate: no such key: missing";
    assert_eq!(evaluate("variables.broken == 1").0, Ok(Err(failed.into())));
    let (first, cost) = evaluate("variables.sum == 1004");
    assert_eq!(first, Ok(Ok(Answer::Bool(true))));
    assert!(evaluate("variables.sum == 1004").1 * 100 < cost, "asked again it costs nothing");
    assert!(evaluate("variables.text > 1").0.unwrap_err().contains("applied to '(string, int)'"));
    assert!(evaluate("variables.later == 1").0.unwrap_err().contains("undefined field 'later'"));
}

#[test]
fn mutations_make_objects_whose_parts_are_where_they_belong() {
    let environment = Environment::of(&["object"]).making_objects();
    let scope = || {
        let mut scope = Scope::default();
        scope.bind("object", &json!({"spec": {"replicas": 3}}));
        scope
    };
    let make = |text: &str| Expression::typed(text, &environment)?.0.value(&scope(), &mut BUDGET.clone());
    assert_eq!(
        make(
            "Object{spec: Object.spec{replicas: object.spec.replicas + 1, template: Object.spec.template{paused: true}}}"
        ),
        Ok(json!({"spec": {"replicas": 4, "template": {"paused": true}}}))
    );
    assert_eq!(
        make("Object{metadata: Object.metadata{labels: {'a/b': 'c'}, ?name: optional.none()}}"),
        Ok(json!({"metadata": {"labels": {"a/b": "c"}}}))
    );
    assert_eq!(
        make("Object{spec: Object.spec{items: [Object.spec.items{name: 'a'}]}}"),
        Ok(json!({"spec": {"items": [{"name": "a"}]}}))
    );
    assert!(make("Object{spec: Object.status{a: 1}}").unwrap_err().contains("type mismatch: unexpected type name"));
    assert_eq!(
        make("[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('b/c'), value: Object.x{y: 1}}]"),
        Ok(json!([{"op": "add", "path": "/a/b~1c", "value": {"y": 1}}]))
    );
    assert!(make("[JSONPatch{op: 1, path: '/a'}]").unwrap_err().contains("expected type of field 'op'"));
    assert!(make("[JSONPatch{oops: 1}]").unwrap_err().contains("undefined field 'oops'"));
    assert!(make("Elsewhere{}").unwrap_err().contains("undeclared reference to 'Elsewhere'"));
    let wanted = [Type::Made("Object".into())];
    let error = Expression::compile("Object.spec{}", &environment, &wanted).unwrap_err();
    assert_eq!(error, "must evaluate to Object");
    let patches = [Type::list(Type::Made("JSONPatch".into()))];
    assert!(Expression::compile("[JSONPatch{op: 'remove', path: '/a'}]", &environment, &patches).is_ok());
}

/// What `ValidatingAdmissionPolicy` reports of types it knows by the schemas of its resources.
#[test]
fn a_schema_tells_what_an_expression_confuses() {
    let deployment = crate::schema::definition("io.k8s.api.apps.v1.Deployment").unwrap();
    let environment = Environment::of(&["object", "request"]).typed("object", Type::of(deployment));
    let check = |text: &str| Expression::typed(text, &environment).map(|(_, of)| of.to_string());
    assert_eq!(check("object.spec.replicas > 1").as_deref(), Ok("bool"));
    assert_eq!(check("object.spec.template.spec.containers.all(c, c.image.contains(':'))").as_deref(), Ok("bool"));
    assert_eq!(check("object.metadata.labels['a']").as_deref(), Ok("string"));
    assert_eq!(check("object.metadata.namespace + object.metadata.__namespace__").as_deref(), Ok("string"));
    assert_eq!(check("has(object.spec.paused) && object.spec.paused").as_deref(), Ok("bool"));
    assert_eq!(check("object.?spec.replicas").as_deref(), Ok("optional_type(int)"));
    for (text, part) in [
        ("object.spec.replicas > '1'", "found no matching overload for '_>_' applied to '(int, string)'"),
        ("'wants replicas > 1, got ' + object.spec.replicas", "'_+_' applied to '(string, int)'"),
        ("object.foo == 1", "undefined field 'foo'"),
        ("object.spec.template.spec.containers.image == ''", "type 'list("),
        ("object.metadata.labels.exists(k, k == 1)", "'_==_' applied to '(string, int)'"),
    ] {
        let error = check(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn every_function_that_is_declared_exists() {
    let mut count = 0;
    for (name, overloads) in library::every() {
        for overload in overloads {
            let args = vec![Cel::Null; overload.args.len()];
            let called = functions::apply(name, overload.member, args, &mut Meter::new(BUDGET));
            let undeclared = matches!(&called, Err(Fault::Failed(why)) if why.contains("Undeclared"));
            assert!(!undeclared, "{name}: {called:?}");
            count += 1;
        }
    }
    assert!(count > 200, "{count}");
}

#[test]
fn the_table_of_functions_says_what_it_means() {
    let written = |name: &str| {
        let overloads = library::overloads(name).unwrap_or_default().iter();
        overloads.map(|o| format!("{} {:?} {}", o.member, o.args, o.result)).collect::<Vec<_>>()
    };
    assert_eq!(written("containsIP").len(), 2);
    assert_eq!(written("startsWith"), ["true [String, String] bool"]);
    assert_eq!(written("first"), ["true [List(Param(0))] optional_type(A)"]);
    assert_eq!(written("sets.contains"), ["false [List(Param(0)), List(Param(0))] bool"]);
    assert_eq!(written("getQuery"), ["true [Named(\"kubernetes.URL\")] map(string, list(string))"]);
    assert_eq!(written("optional.none"), ["false [] optional_type(dyn)"]);
    assert_eq!(library::field("kubernetes.UserInfo", "extra"), Some(Type::map(Type::String, Type::list(Type::String))));
}

/// Words and signs an expression may be made of, in any order.
fn gibberish() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "object",
        "variables",
        "a",
        "b",
        "x",
        "1",
        "2u",
        "1.5",
        "'s'",
        "b'b'",
        "true",
        "null",
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        "?",
        ":",
        ",",
        ".",
        ".?",
        "[?",
        "+",
        "-",
        "*",
        "/",
        "%",
        "!",
        "<",
        "==",
        "&&",
        "||",
        "in",
        "has(",
        ".all(x,",
        ".map(x,",
        ".filter(a,",
        ".size()",
        "size(",
        "string(",
        ".matches(",
        ".split('')",
        "Object{",
        "JSONPatch{op:",
        "dyn(",
        "cel.bind(x,",
        ".format([",
        "lists.range(",
        "sets.contains(",
        "optional.of(",
        ".orValue(",
        "quantity(",
        ".transformMap(k,v,",
        "timestamp(",
        "\\",
        "`",
        "é",
    ]);
    prop::collection::vec(words, 0..40).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn no_text_makes_the_compiler_or_the_evaluator_fail(text in prop_oneof![gibberish(), ".{0,60}"]) {
        let environment = Environment::of(&["object"]).composing().making_objects();
        if let Ok((expression, _)) = Expression::typed(&text, &environment) {
            let mut scope = Scope::default();
            scope.bind("object", &json!({"a": [1, 2, {"b": "s"}], "b": {"x": null}, "x": "text"}));
            let mut budget = BUDGET;
            drop(expression.evaluate(&scope, &mut budget));
            prop_assert!(budget >= BUDGET - CALL_BUDGET);
        }
    }

    /// What has a type keeps to it: a value of another is an error of the checker's.
    #[test]
    fn what_compiles_as_a_condition_is_one(text in gibberish()) {
        if let Ok(expression) = Expression::compile(&text, &Environment::of(&[]), &[Type::Bool]) {
            let answer = expression.evaluate(&Scope::default(), &mut BUDGET.clone());
            let dynamic = Expression::typed(&text, &Environment::of(&[])).is_ok_and(|(_, of)| of.is_dyn());
            prop_assert!(dynamic || matches!(answer, Ok(Answer::Bool(_)) | Err(_)), "{text}: {answer:?}");
        }
    }
}
