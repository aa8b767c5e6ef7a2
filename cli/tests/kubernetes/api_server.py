"""The part of a Kubernetes API server that Polo talks to, over HTTPS, for tests.

    api_server.py FOLDER

writes FOLDER/kubeconfig with the contexts admin, viewer (may only look) and stranger (is not known), and serves until
standard input ends. Requests are authenticated, authorised, validated by the published schemas in strict mode, and applied
with field ownership as in server_side_apply.py; Jobs get pods. Each line of standard input is a JSON order of the test
({"do": ...}, see `Orders`), each line of output its JSON answer.
"""

import asyncio
import base64
import copy
import datetime
import json
import ssl
import sys
from pathlib import Path

import kubernetes_validate
import trustme
from aiohttp import WSMsgType, web

import server_side_apply as ssa

KINDS = {
    "configmaps": ("v1", "ConfigMap"),
    "pods": ("v1", "Pod"),
    "serviceaccounts": ("v1", "ServiceAccount"),
    "services": ("v1", "Service"),
    "jobs": ("batch/v1", "Job"),
    "networkpolicies": ("networking.k8s.io/v1", "NetworkPolicy"),
    "poddisruptionbudgets": ("policy/v1", "PodDisruptionBudget"),
}
MAY = {"admin": {"get", "list", "create", "patch", "delete"}, "viewer": {"get", "list"}}
IMMUTABLE_OF_JOBS = ["template", "selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"]


class Refused(Exception):
    """An answer that is a Status."""

    def __init__(self, code, reason, message, causes=()):
        self.status = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
            "details": {"causes": list(causes)},
        }


class Cluster:
    """Objects, who owns their fields, and a Job controller that is done at once."""

    def __init__(self):
        self.objects, self.owners, self.logs = {}, {}, {}
        self.version = 0
        self.changed = asyncio.Event()

    def get(self, key):
        if key not in self.objects:
            raise Refused(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        return self.objects[key]

    def put(self, key, obj, owners):
        """Stores an object; one that is as before keeps its version."""
        before = self.objects.get(key)
        bare = lambda o: {**o, "metadata": {k: v for k, v in o["metadata"].items() if k not in ("resourceVersion", "managedFields")}}
        if before is None or bare(before) != bare(obj) or self.owners.get(key) != owners:
            self.version += 1
            metadata = obj["metadata"]
            metadata["resourceVersion"] = str(self.version)
            metadata.setdefault("uid", f"uid-{self.version}")
            metadata.setdefault("creationTimestamp", now())
            metadata["managedFields"] = ssa.managed_fields(owners, obj["apiVersion"])
            self.objects[key], self.owners[key] = obj, owners
        self.announce()
        if key[0] == "jobs":
            self.settle(key)
        return self.objects[key]

    def announce(self):
        self.changed.set()
        self.changed = asyncio.Event()

    def settle(self, key):
        """Makes the pods of a Job, and ends those that are too many."""
        job = self.objects[key]
        spec, (_, namespace, name) = job["spec"], key
        wanted = 0 if spec.get("suspend") or "deletionTimestamp" in job["metadata"] else spec["parallelism"]
        pods = {pod[2] for pod in self.objects if pod[0] == "pods" and pod[2].startswith(f"{name}-") and pod[1] == namespace}
        names = {f"{name}-{index}-pod": str(index) for index in range(wanted)}
        for gone in pods - set(names):
            del self.objects["pods", namespace, gone]
        for pod in set(names) - pods:
            labels = dict(spec["template"]["metadata"]["labels"])
            if spec.get("completionMode") == "Indexed":
                labels["batch.kubernetes.io/job-completion-index"] = names[pod]
            self.objects["pods", namespace, pod] = {
                "apiVersion": "v1", "kind": "Pod", "spec": copy.deepcopy(spec["template"]["spec"]),
                "metadata": {"name": pod, "namespace": namespace, "labels": labels, "creationTimestamp": now()},
                "status": {"phase": "Running"},
            }
            self.logs[pod] = [f"{labels['app.kubernetes.io/component']} says {word}" for word in ("one", "two", "three")]
        self.announce()

    async def delete(self, key, foreground):
        obj = self.get(key)
        if key[0] == "jobs" and foreground:
            obj["metadata"]["deletionTimestamp"] = now()
            self.settle(key)
            # As long as its pods would take to end.
            asyncio.get_running_loop().call_later(0.5, self.objects.pop, key, None)
        else:
            del self.objects[key]
        return obj


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def merge_patch(value, patch):
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    new = dict(value) if isinstance(value, dict) else {}
    for name, change in patch.items():
        if change is None:
            new.pop(name, None)
        else:
            new[name] = merge_patch(new.get(name), change)
    return new


def check_schema(obj):
    """What the API server calls strict field validation."""
    bare = {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "managedFields"}}
    try:
        kubernetes_validate.validate(bare, ssa.VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        place = ".".join(map(str, error.path))
        raise Refused(422, "Invalid", f'{obj["kind"]} is invalid: {place}: {error.message}')


def check_change(before, after):
    """What may not change in a Job, once it is there."""
    if after["kind"] != "Job":
        return
    old, new = (before or after)["spec"], after["spec"]
    indexed = new.get("completionMode") == "Indexed"
    if old.get("completions") != new.get("completions") and not (indexed and new.get("completions") == new.get("parallelism")):
        refuse_field(after, "spec.completions", "field is immutable")
    for field in IMMUTABLE_OF_JOBS:
        if old.get(field) != new.get(field):
            refuse_field(after, f"spec.{field}", "field is immutable")


def refuse_field(obj, field, what):
    message = f'{obj["kind"]}.batch "{obj["metadata"]["name"]}" is invalid: {field}: Invalid value: {{...}}: {what}'
    raise Refused(422, "Invalid", message, [{"reason": "FieldValueInvalid", "message": what, "field": field}])


class Api:
    """The HTTP side."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.coordinator = None
        self.denied = {}
        self.requests = []

    def application(self):
        app = web.Application(middlewares=[self.refusals])
        for root in ("/api/v1", "/apis/{group}/v1"):
            collection = root + "/namespaces/{namespace}/{plural}"
            app.router.add_get(collection, self.list)
            app.router.add_get(collection + "/{name}", self.read)
            app.router.add_patch(collection + "/{name}", self.patch)
            app.router.add_delete(collection + "/{name}", self.delete)
            app.router.add_get(collection + "/{name}/log", self.log)
            app.router.add_get(collection + "/{name}/portforward", self.port_forward)
        return app

    @web.middleware
    async def refusals(self, request, handler):
        self.requests.append(f"{request.method} {request.path_qs}")
        try:
            return await handler(request)
        except Refused as refused:
            return web.json_response(refused.status, status=refused.status["code"])

    def authorise(self, request, verb, subresource=""):
        """The key of what is asked for, if that may be done."""
        user = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if user not in MAY:
            raise Refused(401, "Unauthorized", "Unauthorized")
        info = request.match_info
        plural, namespace, name, group = info["plural"], info["namespace"], info.get("name", ""), info.get("group", "")
        if verb not in MAY[user]:
            resource = f"{plural}.{group}" if group else plural
            raise Refused(403, "Forbidden", f'{resource} "{name}" is forbidden: User "{user}" cannot {verb} resource '
                          f'"{plural}{subresource}" in API group "{group}" in the namespace "{namespace}"')
        if message := self.denied.get((verb, plural)):
            raise Refused(403, "Forbidden", message)
        return plural, namespace, name

    async def list(self, request):
        plural, namespace, _ = self.authorise(request, "list")
        wanted = [pair.split("=") for pair in request.query.get("labelSelector", "").split(",") if pair]
        found = [
            obj for (kind, place, _), obj in sorted(self.cluster.objects.items())
            if (kind, place) == (plural, namespace)
            and all(obj["metadata"].get("labels", {}).get(key) == value for key, value in wanted)
        ]
        api_version, kind = KINDS[plural]
        if "PartialObjectMetadataList" in request.headers.get("Accept", ""):
            found = [self.metadata(obj) for obj in found]
            api_version, kind = "meta.k8s.io/v1", "PartialObjectMetadata"
        return web.json_response({"apiVersion": api_version, "kind": f"{kind}List", "metadata": {}, "items": found})

    @staticmethod
    def metadata(obj):
        return {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": obj["metadata"]}

    async def read(self, request):
        obj = self.cluster.get(self.authorise(request, "get"))
        partial = "PartialObjectMetadata" in request.headers.get("Accept", "")
        return web.json_response(self.metadata(obj) if partial else obj)

    async def patch(self, request):
        key = self.authorise(request, "patch")
        manager = request.query.get("fieldManager", "unknown")
        body = json.loads(await request.read())
        if request.content_type == "application/apply-patch+yaml":
            return web.json_response(self.apply(key, body, manager, request.query.get("force") == "true"))
        if request.content_type == "application/merge-patch+json":
            return web.json_response(self.merge(key, body, manager))
        raise Refused(415, "UnsupportedMediaType", f"no patch of type {request.content_type} here")

    def apply(self, key, config, manager, force):
        live, owners = self.cluster.objects.get(key), self.cluster.owners.get(key, {})
        check_schema(config)
        if (config["apiVersion"], config["kind"]) != KINDS[key[0]] or config["metadata"]["name"] != key[2]:
            raise Refused(400, "BadRequest", "the object does not match the path")
        try:
            new, owners = ssa.apply(live, config, manager, force, owners)
        except ssa.Conflict as conflict:
            self.refuse_conflict(config, conflict.args[0])
        new["metadata"]["namespace"] = key[1]
        check_change(live, new)
        return self.cluster.put(key, new, owners)

    @staticmethod
    def refuse_conflict(config, conflicts):
        using = config["apiVersion"]
        causes = [
            {"reason": "FieldManagerConflict", "message": f'conflict with "{name}" using {using}', "field": ssa.path_text(path)}
            for name, path in conflicts
        ]
        listed = "\n".join(f"- {cause['field']}" for cause in causes)
        raise Refused(409, "Conflict", f"Apply failed with {len(causes)} conflicts: {listed}", causes)

    def merge(self, key, patch, manager):
        live = self.cluster.get(key)
        new = merge_patch(live, patch)
        check_schema(new)
        check_change(live, new)
        return self.cluster.put(key, new, ssa.updated(live, new, manager, self.cluster.owners[key]))

    async def delete(self, request):
        key = self.authorise(request, "delete")
        body = await request.read()
        policy = json.loads(body).get("propagationPolicy") if body else None
        return web.json_response(await self.cluster.delete(key, policy == "Foreground"))

    async def log(self, request):
        key = self.authorise(request, "get", "/log")
        pod = self.cluster.get(key)
        if pod["status"]["phase"] == "Pending":
            container = pod["spec"]["containers"][0]["name"]
            raise Refused(400, "BadRequest", f'container "{container}" in pod "{key[2]}" is waiting to start: ContainerCreating')
        lines = self.cluster.logs[key[2]]
        tail = request.query.get("tailLines")
        response = web.StreamResponse()
        await response.prepare(request)
        first = max(0, len(lines) - int(tail)) if tail else 0
        while True:
            for line in lines[first:]:
                await response.write(f"{line}\n".encode())
            first, waits = len(lines), self.cluster.changed
            running = key in self.cluster.objects and pod["status"]["phase"] == "Running"
            if request.query.get("follow") != "true" or not running:
                return response
            await waits.wait()

    async def port_forward(self, request):
        """Channels 0 and 1 are data and error of the port; both begin with its number."""
        key = self.authorise(request, "create", "/portforward")
        self.cluster.get(key)
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        port = int(request.query["ports"]).to_bytes(2, "little")
        await socket.send_bytes(b"\x00" + port)
        await socket.send_bytes(b"\x01" + port)
        host, _, number = (self.coordinator or "127.0.0.1:1").rpartition(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(number))
        except OSError as error:
            await socket.send_bytes(b"\x01" + f"error forwarding port: {error}".encode())
            return socket
        back = asyncio.create_task(self.carry_back(reader, socket))
        async for message in socket:
            if message.type == WSMsgType.BINARY and message.data[0] == 0:
                writer.write(message.data[1:])
        back.cancel()
        writer.close()
        return socket

    @staticmethod
    async def carry_back(reader, socket):
        while data := await reader.read(65536):
            await socket.send_bytes(b"\x00" + data)
        await socket.close()


class Orders:
    """What a test may do beside the API."""

    def __init__(self, api):
        self.api, self.cluster = api, api.cluster

    def get(self, key):
        return self.cluster.objects.get(tuple(key))

    def list(self):
        return [list(key) for key in sorted(self.cluster.objects)]

    def patch(self, key, manager, patch):
        """Another client changes an object."""
        return self.api.merge(tuple(key), patch, manager)

    def apply(self, key, manager, obj):
        """Another client applies an object."""
        return self.api.apply(tuple(key), obj, manager, False)

    def status(self, key, status):
        """A controller reports how an object is."""
        self.cluster.objects[tuple(key)]["status"] = status
        self.cluster.announce()

    def say(self, pod, line):
        self.cluster.logs[pod].append(line)
        self.cluster.announce()

    def deny(self, verb, plural, message):
        self.api.denied[verb, plural] = message

    def coordinator(self, address):
        """Where port-forwards end."""
        self.api.coordinator = address

    def requests(self):
        """Requests since they were last asked for."""
        requests, self.api.requests = self.api.requests, []
        return requests


def kubeconfig(port, authority):
    cluster = {"server": f"https://localhost:{port}", "certificate-authority-data": base64.b64encode(authority).decode()}
    users = ["admin", "viewer", "stranger"]
    context = lambda user: {"name": user, "context": {"cluster": "test", "user": user, "namespace": "research"}}
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "admin",
        "clusters": [{"name": "test", "cluster": cluster}],
        "contexts": [context(user) for user in users],
        "users": [{"name": user, "user": {"token": user}} for user in users],
    }


async def main(folder):
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    api = Api(Cluster())
    runner = web.AppRunner(api.application(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0, ssl_context=tls)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    (folder / "kubeconfig").write_text(json.dumps(kubeconfig(port, authority.cert_pem.bytes())))
    print(json.dumps({"port": port}), flush=True)
    orders = Orders(api)
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        print(json.dumps({"answer": getattr(orders, order.pop("do"))(**order)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
