"""Checks objects as an API server would: reads YAML documents from standard input, prints them as a JSON list.

Kubernetes' own kinds are held against the published schemas of the newest three minor releases, in strict mode; those of
JobSet and Kubeflow Trainer against their models, which must know every field. Another kind is refused, unless it is named as
an argument.
"""

import json
import sys

import kubernetes_validate
import yaml
from kubeflow_trainer_api import models
from kubernetes_validate.utils import all_versions

MINORS = sorted({tuple(map(int, version.split(".")[:2])) for version in all_versions()})[-3:]
MODELS = {
    "JobSet": models.JobsetV1alpha2JobSet,
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
}


def known_part(value, modelled):
    """What the model has kept of a value."""
    if isinstance(value, dict) and isinstance(modelled, dict):
        return {name: known_part(child, modelled[name]) for name, child in value.items() if name in modelled}
    if isinstance(value, list) and isinstance(modelled, list):
        return [known_part(*pair) for pair in zip(value, modelled)]
    return value


def check(obj):
    kind = obj["kind"]
    if model := MODELS.get(kind):
        modelled = json.loads(json.dumps(model.from_dict(obj).to_dict(), default=str))
        assert known_part(obj, modelled) == obj, f"{kind}: the model does not know every field"
    elif kind not in sys.argv[1:]:
        for minor in MINORS:
            kubernetes_validate.validate(obj, ".".join(map(str, minor)), strict=True)


objects = [obj for obj in yaml.safe_load_all(sys.stdin) if obj]
for obj in objects:
    try:
        check(obj)
    except Exception as error:
        place = ".".join(map(str, getattr(error, "path", "")))
        sys.exit(f"{obj.get('kind')}/{obj.get('metadata', {}).get('name')}: {place}: {getattr(error, 'message', error)}")
json.dump(objects, sys.stdout)
