#!/usr/bin/env python3
"""Writes canonical.tsv: digests of the canonical data of Kubernetes' API types, protobuf and JSON.

    canonical.py .../k8s.io/api/testdata/HEAD        (Debian's golang-k8s-api-dev 0.36.4)
"""
import hashlib, json, os, sys

directory = sys.argv[1]
digest = lambda data: hashlib.sha256(data).hexdigest()[:20]
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "canonical.tsv"), "w") as out:
    for file in sorted(os.listdir(directory)):
        name, extension = os.path.splitext(file)
        if extension != ".pb":
            continue
        read = lambda extension: open(os.path.join(directory, name + extension), "rb").read()
        text = json.dumps(json.loads(read(".json")), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        out.write(f"{name}\t{digest(read('.pb'))}\t{digest(text.encode())}\n")
