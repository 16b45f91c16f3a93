use super::*;

const RANGE: &str = "{apiVersion: v1, kind: LimitRange, metadata: {name: a}, spec: {limits: [{type: Container, min: {cpu: 100m}, max: {cpu: 1}}]}}";

#[test]
fn a_limit_range_completes_itself() {
    let range = created(RANGE);
    let limit = &range.get_list(&["spec", "limits"])[0];
    assert_eq!((&limit["default"]["cpu"], &limit["defaultRequest"]["cpu"]), (&Value::from("1"), &Value::from("1")));
    check(RANGE, &[]);
}

#[test]
fn the_bounds_of_a_limit_range_do_not_contradict_each_other() {
    let of = |limit: &str| {
        format!("{{apiVersion: v1, kind: LimitRange, metadata: {{name: a}}, spec: {{limits: [{limit}]}}}}")
    };
    check(
        &of("{type: Pod, min: {cpu: 2}, max: {cpu: 1}}"),
        &["spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"],
    );
    check(
        &of("{type: Container, default: {cpu: 1}, defaultRequest: {cpu: 2}}"),
        &[
            "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1",
        ],
    );
    check(
        &of("{type: Pod, default: {cpu: 1}}"),
        &["spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'"],
    );
    check(
        &of("{type: PersistentVolumeClaim, min: {cpu: 1}}"),
        &[
            "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
        ],
    );
    check(
        &of("{type: Pod, maxLimitRequestRatio: {cpu: 500m}}"),
        &["spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1"],
    );
    check(
        &of("{type: Pod, maxLimitRequestRatio: {cpu: 3}, min: {cpu: 1}, max: {cpu: 2}}"),
        &["spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000"],
    );
}

#[test]
fn a_quota_names_what_can_be_bounded_by_scopes_that_tell_it_apart() {
    let of = |spec: &str| format!("{{apiVersion: v1, kind: ResourceQuota, metadata: {{name: a}}, spec: {spec}}}");
    check(
        &of(
            "{hard: {pods: 1, cpu: 500m, count/widgets.example.com: 1, requests.example.com/gpu: 1, hugepages-2Mi: 4Mi}}",
        ),
        &[],
    );
    check(
        &of("{hard: {widgets: 1}}"),
        &["spec.hard[widgets]: Invalid value: \"widgets\": must be a standard resource for quota"],
    );
    check(&of("{hard: {pods: 500m}}"), &["spec.hard[pods]: Invalid value: \"500m\": must be an integer"]);
    check(&of("{hard: {pods: 1}, scopes: [BestEffort, NotTerminating]}"), &[]);
    check(
        &of("{hard: {services: 1}, scopes: [BestEffort]}"),
        &["spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource"],
    );
    check(
        &of("{hard: {pods: 1}, scopes: [Terminating, NotTerminating]}"),
        &["spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\"]: conflicting scopes"],
    );
    let selected =
        |expression: &str| of(&format!("{{hard: {{pods: 1}}, scopeSelector: {{matchExpressions: [{expression}]}}}}"));
    check(&selected("{scopeName: PriorityClass, operator: In, values: [high]}"), &[]);
    check(
        &selected("{scopeName: PriorityClass, operator: In}"),
        &[
            "spec.scopeSelector.matchExpressions[0].values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
        ],
    );
    check(
        &selected("{scopeName: Elsewhere, operator: Exists}"),
        &["spec.scopeSelector.matchExpressions[0].scopeName: Invalid value: \"Elsewhere\": unsupported scope"],
    );
}
