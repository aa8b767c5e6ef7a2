"""Tests of the container images, with podman on a bootstrapped Debian: `python3 -m unittest discover scripts`."""

import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from demos import POLO, ROOT, TOKENIZER, WEED

DEBIAN = ROOT / "third_party/debian/base.tar"
BASE, COORDINATOR, WORKER = "localhost/debian:test", "localhost/polo-coordinator:test", "localhost/polo:test"
LIMIT = 180  # seconds for one command: how long is bounded, not how long it should take
# A sandbox's root may not raise them to what podman would ask for.
ULIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
# As pods of the restricted profile run.
RESTRICTED = ["--user=65532:65532", "--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL",
              "--security-opt=no-new-privileges", "--network=none"]
NUM_WORKERS = 2
SECRET = {"AWS_ACCESS_KEY_ID": "polo", "AWS_SECRET_ACCESS_KEY": "polo"}

RECIPE = """
[run]
name = "tiny"
store = "s3://polo/run"
seed = 3

[model.qwen2]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 24
vocab_size = 151936

[corpus]
url = "s3://polo/corpus"

[batch]
seq_len = 16
samples_per_step = 4
slots = 2

[workers]
min_workers = 2
wait_timeout_s = 60

[[stages]]
name = "main"
steps = 4
schedule = { kind = "constant", peak_learning_rate = 1e-3 }
sources = [{ name = "en", weight_tokens = 1 }, { name = "ne", weight_tokens = 1 }]
"""


def why_not():
    """Why images cannot be tested here, if they cannot."""
    if missing := [path.name for path in (POLO, POLO.with_name("polo-worker"), WEED, TOKENIZER, DEBIAN) if not path.exists()]:
        return f"{', '.join(missing)} missing: make build, and scripts/setup podman"
    if not shutil.which("podman"):
        return "podman is missing: scripts/setup podman"
    libc, version = platform.libc_ver()
    if libc == "glibc" and tuple(map(int, version.split("."))) > (2, 36):
        return f"programs made with glibc {version} do not run on Debian 12, which has 2.36"


def finish(command, **options):
    """What a command says, which must go well."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, **options)
    if done.returncode != 0:
        raise AssertionError(f"{command} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


class Podman:
    """Podman with a storage of its own, which is gone afterwards."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="polo-images-", dir="/var/tmp"))
        self.engine = ["podman", "--root", self.folder / "storage", "--runroot", self.folder / "run", "--runtime", "runc"]

    def __call__(self, *arguments):
        return finish([*self.engine, *arguments])

    def run(self, *arguments):
        return self("run", "--rm", *ULIMITS, *arguments)

    def build(self, *names):
        settings = {"ENGINE": " ".join(map(str, self.engine)), "BASE": BASE, "TAG": "test", "PROGRAMS": str(POLO.parent)}
        finish([ROOT / "images/build", *names], env={**os.environ, **settings})

    def said(self, container):
        """What a container has said so far, on both streams."""
        logs = subprocess.run([*self.engine, "logs", container], capture_output=True, text=True, timeout=LIMIT)
        return f"{container}: {logs.stdout}{logs.stderr}"

    def inspect(self, image):
        return json.loads(self("image", "inspect", image))[0]

    def files(self, image):
        """The files of an image by their paths in it."""
        root = pathlib.Path(self("image", "mount", image).strip())
        return {"/" + str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file() and not path.is_symlink()}

    def remove(self):
        for arguments in (["rm", "--all", "--force", "--time=0"], ["image", "unmount", "--all", "--force"]):
            subprocess.run([*self.engine, *arguments], capture_output=True, timeout=LIMIT)
        mounts = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(str(self.folder))]):
            subprocess.run(["umount", mount])  # left by a build that was ended
        shutil.rmtree(self.folder)


class Pod:
    """A pod of a Job, as a kubelet would understand it, in podman's words."""

    def __init__(self, objects, job, index=0):
        spec = job["spec"]["template"]["spec"]
        [self.container] = spec["containers"]
        self.config = next(o["data"] for o in objects if o["kind"] == "ConfigMap")
        self.volumes = {volume["name"]: volume for volume in spec["volumes"]}
        self.security = {**spec["securityContext"], **self.container["securityContext"]}
        self.index, self.name, self.env = index, f"{job['metadata']['name']}-{index}", {}
        for variable in self.container["env"]:
            self.env[variable["name"]] = self.expand(variable["value"] if "value" in variable else self.referred(variable["valueFrom"]))

    def referred(self, source):
        return self.config[source["configMapKeyRef"]["key"]] if "configMapKeyRef" in source else str(self.index)

    def expand(self, text):
        return re.sub(r"\$\((\w+)\)", lambda match: self.env[match[1]], text)

    def mount(self, mount, folder):
        volume, path = self.volumes[mount["name"]], mount["mountPath"]
        if "emptyDir" in volume:
            return f"--mount=type=tmpfs,destination={path}"
        for item in volume["configMap"]["items"]:
            (folder / item["path"]).write_text(self.config[item["key"]])
        return f"--volume={folder}:{path}:ro"

    def arguments(self, folder):
        folder.mkdir()
        security = self.security
        user = f"{security['runAsUser']}:{security['runAsGroup']}"
        options = ["--name", self.name, "--user", user, "--read-only-tmpfs=false"]
        options += ["--read-only"] if security["readOnlyRootFilesystem"] else []
        options += [f"--cap-drop={capability}" for capability in security["capabilities"]["drop"]]
        options += [] if security["allowPrivilegeEscalation"] else ["--security-opt=no-new-privileges"]
        options += [self.mount(mount, folder) for mount in self.container["volumeMounts"]]
        options += [f"--env={name}={value}" for name, value in {**self.env, **SECRET}.items()]
        command = [*self.container["command"], *map(self.expand, self.container["args"])]
        return [*options, f"--entrypoint={json.dumps(command[:1])}", self.container["image"], *command[1:]]


class Build(unittest.TestCase):
    def test_what_is_missing_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            env = {**os.environ, "PROGRAMS": folder, "ENGINE": "podman"}
            done = subprocess.run([ROOT / "images/build", "worker"], env=env, capture_output=True, text=True, timeout=LIMIT)
        self.assertEqual((done.returncode, done.stderr), (1, f"images: {folder}/polo is missing; make it with: make build FLAVOUR=cpu\n"))


class Images(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if reason := why_not():
            raise unittest.SkipTest(reason)
        cls.podman = Podman()
        cls.addClassCleanup(cls.podman.remove)
        cls.podman("import", DEBIAN.resolve(), BASE)
        cls.podman.build("coordinator", "worker")

    def test_the_coordinator_s_has_one_program_and_what_that_needs(self):
        image = self.podman.inspect(COORDINATOR)
        self.assertEqual(image["Config"].get("User"), "65532:65532")
        self.assertLess(image["Size"], 100 << 20)
        files = self.podman.files(COORDINATOR)
        programs = [path for path, file in files.items() if file.stat().st_mode & 0o111 and ".so" not in path]
        self.assertEqual(programs, ["/usr/local/bin/polo"])
        self.assertGreater(files["/etc/ssl/certs/ca-certificates.crt"].read_text().count("BEGIN CERTIFICATE"), 50)
        self.assertIn("Usage: polo", self.podman.run(*RESTRICTED, COORDINATOR, "--help"))

    def test_the_worker_s_has_both_programs_with_the_libraries_it_brings(self):
        image = self.podman.inspect(WORKER)
        self.assertEqual(image["Config"].get("User"), "65532:65532")
        self.assertLess(image["Size"], 1 << 30)
        for program in ("polo", "polo-worker"):
            self.assertIn(f"Usage: {program}", self.podman.run(*RESTRICTED, WORKER, program, "--help"))
        linked = self.podman.run(*RESTRICTED, WORKER, "ldd", "/opt/polo/polo-worker")
        self.assertRegex(linked, r"libtorch_cpu\.so => /opt/polo/lib/")
        self.assertNotIn("not found", linked)

    def test_pods_and_one_container_train_to_the_bits_of_polo_run(self):
        raw, recipe = self.podman.folder / "raw", self.podman.folder / "recipe.toml"
        raw.mkdir()
        for name in ("en", "ne"):
            (raw / f"{name}.txt").write_text("".join(f"Line {i} of {name} has {i * i} words.\n" for i in range(200)))
        recipe.write_text(RECIPE)
        outside = self.outside(raw, recipe)
        self.assertEqual(self.in_containers(raw, recipe), outside)
        self.assertEqual(self.in_one_container(recipe), outside)

    def in_one_container(self, recipe):
        """The digest of `polo run` in the worker's image, which has all that it takes."""
        mounts = ["--tmpfs=/tmp", f"--volume={recipe}:/recipe.toml:ro", f"--volume={self.podman.folder}/outside/corpus:/corpus:ro"]
        run = ["polo", "run", "/recipe.toml", "--workers", str(NUM_WORKERS), "--listen", "127.0.0.1:0"]
        sets = ["--set=run.store=/tmp/run", "--set=corpus.url=/corpus"]
        return self.digest(self.podman.run(*RESTRICTED, *mounts, WORKER, *run, *sets))

    def outside(self, raw, recipe):
        """The digest that `polo run` ends with."""
        folder = self.podman.folder / "outside"
        finish([POLO, "prepare", "--input", raw, "--output", folder / "corpus", "--tokenizer", TOKENIZER])
        sets = [f"--set=run.store={folder}/run", f"--set=corpus.url={folder}/corpus", "--set=workers.min_workers=1"]
        return self.digest(finish([POLO, "run", recipe, "--workers", "1", "--listen", "127.0.0.1:0", *sets]))

    def in_containers(self, raw, recipe):
        """The digest that the run's pods end with."""
        objects = self.submitted(recipe)
        jobs = {job["metadata"]["labels"]["app.kubernetes.io/component"]: job for job in objects if job["kind"] == "Job"}
        pods = [Pod(objects, jobs["coordinator"])] + [Pod(objects, jobs["worker"], i) for i in range(NUM_WORKERS)]
        for i, pod in enumerate(pods[1:]):
            pod.env["POLO_LISTEN"] = f"0.0.0.0:{7100 + i}"  # They share an address here.
        network = self.start_s3()
        self.prepare(raw, network)
        hosts = self.podman.folder / "hosts"  # in the place of a cluster's DNS
        hosts.write_text(f"127.0.0.1 {jobs['coordinator']['metadata']['name']}\n")
        joined = [*ULIMITS, network, f"--volume={hosts}:/etc/hosts:ro"]
        for pod in pods:
            self.podman("run", "--detach", *joined, *pod.arguments(self.podman.folder / pod.name))
        self.await_success([pod.name for pod in pods])
        return self.digest(self.podman("logs", pods[0].name))

    def await_success(self, names):
        try:
            codes = self.podman("wait", *names).split()
        except subprocess.TimeoutExpired:
            codes = f"some run for more than {LIMIT} s"
        self.assertEqual(codes, ["0"] * len(names), "\n".join(self.podman.said(name) for name in names))

    def submitted(self, recipe):
        """What `polo submit` would apply."""
        images = ["--image", COORDINATOR, "--worker-image", WORKER, "--workers", str(NUM_WORKERS)]
        options = ["--insecure", "--secret", "s3", "--env", "AWS_ENDPOINT_URL=http://127.0.0.1:8333", "--dry-run", "--json"]
        return json.loads(finish([POLO, "submit", recipe, *images, *options]))["items"]

    def start_s3(self):
        """A SeaweedFS in a network of its own, which others join: this option says so."""
        mini = ["mini", "-dir=/tmp", "-bucket=polo", "-ip=127.0.0.1", "-webdav=false", "-admin.ui=false",
                "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        env = [f"--env={name}={value}" for name, value in SECRET.items()]
        self.addCleanup(self.podman, "rm", "--force", "--depend", "--time=0", "s3")
        self.podman("run", "--detach", "--name=s3", "--network=none", *ULIMITS, *env, f"--volume={WEED.resolve()}:/weed:ro", BASE, "/weed", *mini)
        deadline = time.monotonic() + 60
        while "Press Ctrl+C" not in self.podman.said("s3"):
            self.assertLess(time.monotonic(), deadline, "SeaweedFS did not come up within 60 s")
            time.sleep(0.2)
        return "--network=container:s3"

    def prepare(self, raw, network):
        env = [f"--env={name}={value}" for name, value in {**SECRET, "AWS_ENDPOINT_URL": "http://127.0.0.1:8333"}.items()]
        inputs = [f"--volume={raw}:/raw:ro", f"--volume={TOKENIZER.resolve()}:/tokenizer.json:ro"]
        self.podman.run(*env, *inputs, network, COORDINATOR, "prepare", "--input", "/raw", "--output", "s3://polo/corpus",
                        "--tokenizer", "/tokenizer.json")

    @staticmethod
    def digest(output):
        last = json.loads(output.splitlines()[-1])
        assert last["outcome"] == "completed", last
        return last["state_digest"]


if __name__ == "__main__":
    unittest.main()
