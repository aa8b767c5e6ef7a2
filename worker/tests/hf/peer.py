"""transformers' side of the tests beside it: answers requests, one line of JSON each, until its input ends.

    make     writes a random Qwen2 of `config` to `folder`, as `dtype`, in shards of at most `max_shard_bytes`
    logits   loads `folder`, refuses missing and unexpected tensors, and returns its fp32 logits for `input_ids`
    tensors  returns every stored tensor of `folder`: its file's type, its shape and the SHA-256 of its bytes
"""

import hashlib
import json
import pathlib
import sys

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM


def make(folder, config, dtype, max_shard_bytes):
    model = Qwen2ForCausalLM(Qwen2Config(**config))
    for name, parameter in model.named_parameters():  # unlike fresh ones, all of these matter to the logits
        centre, spread = (1.0, 0.3) if "norm" in name else (0.0, 0.25)
        torch.nn.init.normal_(parameter, centre, spread)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_bytes)


def logits(folder, input_ids):
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    troubles = {kind: sorted(map(str, found)) for kind, found in loading.items() if found}
    assert not troubles, f"{folder}: {troubles}"
    with torch.no_grad():
        return model(input_ids=torch.tensor(input_ids)).logits.flatten().tolist()


def tensors(folder):
    found = {}
    for path in pathlib.Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                assert name not in found, f"{folder} has {name} twice"
                found[name] = [str(tensor.dtype), list(tensor.shape), hashlib.sha256(content).hexdigest()]
    return found


torch.manual_seed(7)
for line in sys.stdin:
    request = json.loads(line)
    answer = {"make": make, "logits": logits, "tensors": tensors}[request.pop("do")](**request)
    print(json.dumps(answer), flush=True)
