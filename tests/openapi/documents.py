"""Puts what a server publishes under /openapi/v3 into one document on standard output: documents.py URL [WORD…], only the groups
whose path has one of the words in it."""

import json
import sys
import urllib.request


def get(path):
    with urllib.request.urlopen(sys.argv[1] + path) as answer:
        return json.load(answer)


whole = {"openapi": "3.0.0", "info": {"title": "Proa", "version": "1"}, "paths": {}, "components": {"schemas": {}}}
for path, place in get("/openapi/v3")["paths"].items():
    if sys.argv[2:] and not any(word in path for word in sys.argv[2:]):
        continue
    document = get(place["serverRelativeURL"])
    whole["paths"].update(document.get("paths", {}))
    whole["components"]["schemas"].update(document.get("components", {}).get("schemas", {}))
json.dump(whole, sys.stdout)
