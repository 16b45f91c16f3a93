#!/usr/bin/env python3
"""Writes messages.tsv.gz: what Kubernetes' API types are in protobuf and in JSON, as facts in a table.

    derive.py ROOT...    each ROOT a tree of Go packages: .../k8s.io

The roots of the table in the repository are Debian's golang-k8s-api-dev 0.36.4, golang-k8s-apimachinery-dev 0.36.4,
golang-k8s-apiextensions-apiserver-dev 0.36.4 and golang-k8s-metrics-dev 0.36.5 (sid; `apt-get download`, then `dpkg-deb -x`, then
usr/share/gocode/src/k8s.io), and a checkout of kube-aggregator 0.36, which Debian does not have.

Numbers, labels and types are read from generated.proto; names in JSON, pointers and `omitempty` from the tags of the Go types
of the same name: generated.proto does not say which fields are written though they were never set (those that are no pointer).
Nothing else is taken over: no comment and no code. The table, one line each, columns separated by tabs:

    @ package  apiVersion            the package's group and version
    = message  [k]                   k: it is a kind of its own, with apiVersion and kind
    number  type  label  flags  name field of the message above
        label  v value  o pointer or bytes  r repeated  m map
        flags  e omitempty  z omitzero  i inline  (or -)
"""
import gzip, os, re, sys

SHORT = [
    ("k8s.io.api.", ""),
    ("k8s.io.apimachinery.pkg.apis.", ""),
    ("k8s.io.apimachinery.pkg.", ""),
    ("k8s.io.apiextensions_apiserver.pkg.apis.", ""),
    ("k8s.io.kube_aggregator.pkg.apis.", ""),
    ("k8s.io.metrics.pkg.apis.", ""),
]
UNWANTED = ("testapigroup", "runtime.schema", "custom_metrics", "external_metrics")


def short(name):
    for prefix, rest in SHORT:
        if name.startswith(prefix):
            return (rest + name[len(prefix):]).replace("util.intstr", "intstr").replace("api.resource", "quantity")
    return name


def inside(root, package):
    """The directory of `k8s.io/package` if it is below root."""
    first, _, rest = package.partition("/")
    for base in (root, os.path.dirname(root.rstrip("/"))):
        if os.path.isdir(path := os.path.join(base, first, rest)):
            return path
    return None


def go_fields(directory):
    """Struct name -> (is a kind, {number: (pointer, flags, JSON name)})."""
    found, aliases = {}, {}
    for file in sorted(os.listdir(directory)):
        if not file.endswith(".go") or file.endswith("_test.go") or file.startswith(("zz_", "generated")):
            continue
        name, imports = None, {}
        for line in open(os.path.join(directory, file), encoding="utf-8"):
            if start := re.match(r"type (\w+) struct \{", line):
                name = start[1]
                found[name] = [False, {}]
            elif line.startswith("}"):
                name = None
            elif match := re.match(r'\s*(?:import )?(\w+) "k8s.io/([\w/.-]+)"', line):
                imports[match[1]] = match[2]
            elif alias := re.match(r"type (\w+) = (?:v1|metav1)\.(\w+)", line):
                aliases[alias[1]] = alias[2]
            elif (same := re.match(r"type (\w+) (\w+)\.(\w+)$", line.split("//")[0].rstrip())) and same[2] in imports:
                other = next((path for root in sys.argv[1:] if (path := inside(root, imports[same[2]]))), None)
                if other and same[3] in (there := go_fields(other)[0]):
                    found[same[1]] = there[same[3]]
            if name is None:
                continue
            field = re.match(r"\s+(?:(\w+)\s+)?([^\s`]+)\s+`(.*)`", line)
            if not field:
                continue
            tags = dict(re.findall(r'(\w+):"([^"]*)"', field[3]))
            if field[2].endswith("TypeMeta") and ",inline" in tags.get("json", ""):
                found[name][0] = True
            if tags.get("protobuf", "-") == "-":
                continue
            number = int(tags["protobuf"].split(",")[1])
            json_name, *options = tags.get("json", "").split(",")
            inline = "inline" in options or (json_name == "" and not field[1])
            flags = ("e" if "omitempty" in options else "") + ("z" if "omitzero" in options else "") + ("i" if inline else "")
            found[name][1][number] = (field[2].startswith("*"), flags or "-", json_name or field[1] or "-")
    return found, aliases


def messages(path):
    """(package, {message: [(number, label, type)]}) of a generated.proto."""
    package, current, result = None, None, {}
    for line in open(path, encoding="utf-8"):
        if match := re.match(r"package ([\w.]+);", line):
            package = match[1]
        elif match := re.match(r"message (\w+) \{", line):
            current = match[1]
            result[current] = []
        elif match := re.match(r"  (optional|repeated) \.?([\w.]+) (\w+) = (\d+)", line):
            result[current].append((int(match[4]), match[1][0], match[2], match[3]))
        elif match := re.match(r"  map<string, \.?([\w.]+)> (\w+) = (\d+)", line):
            result[current].append((int(match[3]), "m", match[1], match[2]))
    return package, result


def group_version(directory):
    group, version = None, os.path.basename(directory)
    for at in (directory, os.path.dirname(directory)):
        path = os.path.join(at, "register.go")
        if group is None and os.path.exists(path):
            if match := re.search(r'const GroupName = "(.*)"', open(path, encoding="utf-8").read()):
                group = match[1]
    if group is None:
        return None
    return f"{group}/{version}" if group else version


SCALARS = {"string", "bytes", "bool", "int32", "int64", "uint32", "uint64", "double"}
# Slices with a name of their own: a message in protobuf, a list in JSON.
NAMED_SLICES = {"ExtraValue", "Verbs"}


def main():
    out, wrong = [], []
    protos = sorted(
        os.path.join(path, "generated.proto") for root in sys.argv[1:] for path, _, files in os.walk(root) if "generated.proto" in files
    )
    for proto in protos:
        package, found = messages(proto)
        name = short(package)
        if any(unwanted in package for unwanted in UNWANTED):
            continue
        directory = os.path.dirname(proto)
        types, aliases = go_fields(directory)
        api_version = "meta.k8s.io/" + name.split(".")[1] if name.startswith("meta.") else group_version(directory)
        out.append(f"@\t{name}\t{api_version or '-'}")
        for alias, target in sorted(aliases.items()) if name.startswith("meta.") else []:
            out.append(f"~\t{name}.{alias}\tmeta.v1.{target}")
        for message, fields in sorted(found.items()):
            kind, tags = types.get(message, (False, {}))
            out.append(f"=\t{name}.{message}" + ("\tk" if kind else ""))
            for number, label, type_, proto_name in sorted(fields):
                if type_ not in SCALARS:
                    type_ = short(type_ if "." in type_ else f"{package}.{type_}")
                pointer, flags, json_name = tags.get(number, (None, "-", None))
                if json_name is None:
                    if message not in NAMED_SLICES and name + "." + message not in SPECIAL:
                        wrong.append(f"{name}.{message}.{proto_name}")
                    json_name = proto_name
                if label == "o":
                    last = type_.rsplit(".", 1)[-1]
                    label = "o" if pointer or type_ == "bytes" or last in NAMED_SLICES else "v"
                out.append(f"{number}\t{type_}\t{label}\t{flags}\t{json_name}")
    if wrong:
        sys.exit("no Go field for " + ", ".join(wrong))
    target = os.path.join(os.path.dirname(os.path.abspath(__file__)), "messages.tsv.gz")
    text = "\n".join(out) + "\n"
    with open(target, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(text.encode())
    print(f"{len(protos)} packages, {text.count(chr(10) + '=')} messages, {len(text)} bytes, {os.path.getsize(target)} compressed")


# Written by hand in Go, and in special.rs.
SPECIAL = {"quantity.Quantity", "quantity.QuantityValue", "meta.v1.Time", "meta.v1.MicroTime", "meta.v1.FieldsV1"}

main()
