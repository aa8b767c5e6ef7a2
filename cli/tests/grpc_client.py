#!/usr/bin/env python3
"""A gRPC client of another make, with stubs made here from Polo's .proto files.

    grpc_client.py HOST:PORT CA OPERATOR_TOKEN WORKER_TOKEN WORKER PROBES_HOST:PORT

Lists services, reads health, status, history and the watch stream, drains a worker, and is refused with no token and with
that of a worker. Where probes are answered it reads health without TLS, and nothing else. Run by cli/tests/protection.rs.
"""
import sys
import tempfile
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent.parent.parent / "proto"
LIMIT = 60


def stubs():
    """The modules of polo.v1."""
    folder = tempfile.mkdtemp()
    status = protoc.main(["protoc", f"-I{PROTO}", f"--python_out={folder}", f"--grpc_python_out={folder}", "polo/v1/polo.proto"])
    assert status == 0, "the .proto files do not compile"
    sys.path.insert(0, folder)
    from polo.v1 import polo_pb2, polo_pb2_grpc
    return polo_pb2, polo_pb2_grpc


def code_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return None


def main():
    address, ca, operator, worker, victim, probes = sys.argv[1:]
    polo, services = stubs()
    channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(ca).read_bytes()))
    control = services.ControlStub(channel)
    shown = lambda token: [("authorization", f"Bearer {token}")]
    ask = {"metadata": shown(operator), "timeout": LIMIT}

    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="polo.v1.Control"), timeout=LIMIT)
    assert health.status == health_pb2.HealthCheckResponse.SERVING, health
    probe = grpc.insecure_channel(probes)
    health = health_pb2_grpc.HealthStub(probe).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT)
    assert health.status == health_pb2.HealthCheckResponse.SERVING, health
    unserved = services.ControlStub(probe)
    assert code_of(lambda: unserved.GetStatus(polo.GetStatusRequest(), **ask)) == grpc.StatusCode.UNIMPLEMENTED
    assert code_of(lambda: control.GetStatus(polo.GetStatusRequest(), timeout=LIMIT)) == grpc.StatusCode.UNAUTHENTICATED
    as_worker = lambda: control.Drain(polo.DrainRequest(worker_id=victim), metadata=shown(worker), timeout=LIMIT)
    assert code_of(as_worker) == grpc.StatusCode.PERMISSION_DENIED

    intercepted = grpc.intercept_channel(channel, WithToken(shown(operator)))
    listed = ProtoReflectionDescriptorDatabase(intercepted).get_services()
    assert "polo.v1.Control" in listed, listed

    status = control.GetStatus(polo.GetStatusRequest(), **ask).status
    assert status.phase == polo.RUN_PHASE_TRAINING and victim in [member.worker_id for member in status.members], status
    assert control.GetHistory(polo.GetHistoryRequest(), **ask).history.steps
    control.Drain(polo.DrainRequest(worker_id=victim), **ask)
    for response in control.WatchStatus(polo.WatchStatusRequest(), **ask):
        if victim not in [member.worker_id for member in response.status.members]:
            return
    sys.exit("the watch ended before the worker had left")


class WithToken(grpc.StreamStreamClientInterceptor):
    """Shows a token with every call."""

    def __init__(self, metadata):
        self.metadata = metadata

    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(details._replace(metadata=self.metadata), requests)


main()
