"""Server-side apply as the API server does it: who owns which field, and what happens when two want the same one.

Pure functions on plain objects. Which lists are maps by keys, and which are taken as a whole, is read from the published
schemas, as the API server reads it from the same source.
"""

import copy
import json
from pathlib import Path

import kubernetes_validate

VERSION = "1.37"
SCHEMAS = Path(kubernetes_validate.__file__).parent / f"kubernetes-json-schema/v{VERSION}.0-local-strict"
DEFINITIONS = json.loads((SCHEMAS / "_definitions.json").read_text())
UNTRACKED = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}


class Conflict(Exception):
    """Others own fields that an apply would change: (manager, path) of each."""


def schema_of(obj):
    group, _, version = obj["apiVersion"].rpartition("/")
    group = group.split(".")[0]
    name = "-".join(filter(None, [obj["kind"].lower(), group, version]))
    return json.loads((SCHEMAS / f"{name}.json").read_text())


def resolve(schema):
    while "$ref" in schema:
        target = DEFINITIONS
        for part in schema["$ref"].split("#/")[1].split("/"):
            target = target[part]
        schema = target
    return schema


def below(schema, name):
    schema = resolve(schema)
    properties = schema.get("properties", {})
    rest = schema.get("additionalProperties", {})
    return properties.get(name, rest if isinstance(rest, dict) else {})


def map_keys(schema):
    schema = resolve(schema)
    return schema.get("x-kubernetes-list-map-keys") if schema.get("x-kubernetes-list-type") == "map" else None


def item_key(item, keys):
    """The identity of an item of a list that is a map, among which defaults count."""
    defaults = {"protocol": "TCP"}
    return tuple((key, item.get(key, defaults.get(key))) for key in keys)


def leaves(value, schema, path=()):
    """Paths that are owned, with what stands there."""
    schema = resolve(schema)
    keys = map_keys(schema)
    if isinstance(value, dict) and value and schema.get("x-kubernetes-map-type") != "atomic":
        parts = [leaves(child, below(schema, name), path + (name,)) for name, child in value.items()]
    elif isinstance(value, list) and value and keys:
        parts = [leaves(item, schema["items"], path + (item_key(item, keys),)) for item in value]
    else:
        return {} if path in UNTRACKED or path[:1] == ("status",) else {path: value}
    return {path: value for part in parts for path, value in part.items()}


def merged(live, config, schema):
    """The live object with what is applied laid over it."""
    schema = resolve(schema)
    keys = map_keys(schema)
    if isinstance(live, dict) and isinstance(config, dict) and schema.get("x-kubernetes-map-type") != "atomic":
        new = dict(live)
        for name, value in config.items():
            new[name] = merged(live[name], value, below(schema, name)) if name in live else copy.deepcopy(value)
        return new
    if isinstance(live, list) and isinstance(config, list) and keys:
        new = {item_key(item, keys): item for item in live}
        for item in config:
            key = item_key(item, keys)
            new[key] = merged(new[key], item, schema["items"]) if key in new else copy.deepcopy(item)
        return list(new.values())
    return copy.deepcopy(config)


def without(value, path):
    """The value less what stands at the path, and what is empty after that."""
    step, rest = path[0], path[1:]
    if isinstance(value, list):
        matches = lambda item: all(item.get(key, "TCP" if key == "protocol" else None) == wanted for key, wanted in step)
        items = [without(item, rest) if rest and matches(item) else item for item in value if rest or not matches(item)]
        return [item for item in items if item not in ({}, None)]
    if step in value:
        child = without(value[step], rest) if rest else None
        value = {**value, step: child}
        if child in ({}, [], None):
            del value[step]
    return value


def apply(live, config, manager, force, owners):
    """The new object and the new owners, {(manager, operation): set of paths}, after `manager` applies `config`."""
    schema = schema_of(config)
    wanted, there = leaves(config, schema), leaves(live or {}, schema)
    me = (manager, "Apply")
    others = {owner: set(paths) for owner, paths in owners.items() if owner != me}
    conflicts = [
        (owner[0], path)
        for owner, paths in others.items()
        for path in wanted
        if path in paths and there.get(path) != wanted[path]
    ]
    if conflicts and not force:
        raise Conflict(conflicts)
    for owner, paths in others.items():
        paths -= {path for name, path in conflicts if name == owner[0]}
    held_by_others = set().union(*others.values())
    new = merged(live or {}, config, schema)
    for path in owners.get(me, set()) - set(wanted) - held_by_others:
        new = without(new, path)
    return new, {**{owner: paths for owner, paths in others.items() if paths}, me: set(wanted)}


def updated(live, new, manager, owners):
    """The owners after `manager` has changed the object in any other way: what changed is its own."""
    schema = schema_of(new)
    before, after = leaves(live, schema), leaves(new, schema)
    changed = {path for path in after if before.get(path, object()) != after[path]}
    kept = {owner: {path for path in paths if path in after} - changed for owner, paths in owners.items()}
    me = (manager, "Update")
    kept[me] = kept.get(me, set()) | changed
    return {owner: paths for owner, paths in kept.items() if paths}


def path_text(path):
    """As the API server writes it: .spec.template.spec.containers[name="worker"].image"""
    item = lambda step: "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in step) + "]"
    return "".join(f".{step}" if isinstance(step, str) else item(step) for step in path)


def managed_fields(owners, api_version):
    """The owners as objects show them."""
    def tree(paths):
        root = {}
        for path in sorted(paths, key=str):
            node = root
            for step in path:
                name = f"f:{step}" if isinstance(step, str) else "k:" + json.dumps(dict(step), sort_keys=True)
                node = node.setdefault(name, {})
        return root

    return [
        {"manager": manager, "operation": operation, "apiVersion": api_version, "fieldsType": "FieldsV1", "fieldsV1": tree(paths)}
        for (manager, operation), paths in sorted(owners.items())
    ]
