#!/usr/bin/env python3
"""Asks a recurrent model over the Open Inference Protocol with Triton's own client, over gRPC and HTTP.

Usage: triton_recurrent.py GRPC_HOST:PORT HTTP_HOST:PORT MODEL PROMPT TOKENS

Every way of asking has to give the same tokens; they are printed.
"""

import queue
import sys

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

# Drawn, so that tokens differ; the same each time.
DRAWN = {"temperature": 1.0, "seed": 7}
EXTENSIONS = {"binary_tensor_data", "sequence", "sequence(string_id)", "statistics", "parameters"}


def text(module, value):
    tensor = module.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value], dtype=object))
    return tensor


def tokens(module, ids, dtype=np.int64):
    datatype = {np.int64: "INT64", np.int32: "INT32"}[dtype]
    tensor = module.InferInput("tokens", [len(ids)], datatype)
    tensor.set_data_from_numpy(np.array(ids, dtype=dtype))
    return tensor


def answer(result):
    return result.as_numpy("text_output")[0].decode(), result.as_numpy("tokens").tolist()


def refused(call, status, words):
    """The call has to be refused with this status and these words."""
    try:
        call()
    except InferenceServerException as error:
        assert status in str(error.status()), f"{error.status()} is not {status}: {error}"
        assert words in error.message(), error
    else:
        raise AssertionError(f"nothing was refused with {words!r}")


def descriptors_agree(channel):
    """Each field that the server tells of by reflection is the protocol's: number, type and all."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    seen = set()

    def same(ours, other):
        if ours.full_name in seen:
            return
        seen.add(ours.full_name)
        assert ours.full_name == other.full_name
        assert len(ours.fields) == len(other.fields), ours.full_name
        for field in ours.fields:
            twin = other.fields_by_number[field.number]
            at = f"{ours.full_name}.{field.name}"
            assert (field.name, field.type) == (twin.name, twin.type), at
            assert field.is_repeated == twin.is_repeated, at
            if field.message_type:
                same(field.message_type, twin.message_type)

    for method in service.methods:
        twin = theirs.methods_by_name[method.name]
        same(method.input_type, twin.input_type)
        same(method.output_type, twin.output_type)
    assert 20 < len(seen), seen


def describes_itself(client, model, module):
    """Health, metadata, index: the same over both wires."""
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(model) and client.is_model_ready(model, "1")
    assert not client.is_model_ready("nobody") and not client.is_model_ready(model, "2")
    as_json = {"as_json": True} if module is over_grpc else {}
    server = client.get_server_metadata(**as_json)
    assert server["name"] == "aerie-serve" and EXTENSIONS <= set(server["extensions"]), server
    metadata = client.get_model_metadata(model, **as_json)

    def tensors(which):
        return {
            it["name"]: (it["datatype"], [int(n) for n in it["shape"]]) for it in metadata[which]
        }

    assert metadata["versions"] == ["1"], metadata
    assert tensors("inputs") == {"text_input": ("BYTES", [1]), "tokens": ("INT64", [-1])}, metadata
    assert tensors("outputs") == {"text_output": ("BYTES", [1]), "tokens": ("INT64", [-1])}, metadata
    index = client.get_model_repository_index(**as_json)
    index = index["models"] if module is over_grpc else index
    assert {"name": model, "version": "1", "state": "READY"}.items() <= index[0].items(), index
    missing = "NOT_FOUND" if module is over_grpc else "404"
    refused(lambda: client.get_model_metadata("nobody"), missing, "nobody")
    refused(lambda: client.get_model_metadata(model, "2"), missing, "version 2")


def streamed(client, model, inputs, **asked):
    """The responses of one request on a stream, up to the final one."""
    responses = queue.Queue()
    client.start_stream(callback=lambda result, error: responses.put((result, error)))
    client.async_stream_infer(model, inputs, enable_empty_final_response=True, **asked)
    parts, ids = [], []
    while True:
        result, error = responses.get(timeout=60)
        if error:
            raise error
        response = result.get_response()
        assert response.id == asked.get("request_id", ""), response
        if response.parameters["triton_final_response"].bool_param:
            break
        part, more = answer(result)
        parts.append(part)
        ids += more
    client.stop_stream()
    assert not response.outputs
    return "".join(parts), ids, response.parameters["finish_reason"].string_param


def same_answers(clients, model, prompt, count):
    """Unary and streamed, text and tokens, raw and JSON: one answer."""
    grpc, http = clients
    asked = {"parameters": {"max_tokens": count, **DRAWN}}
    said, ids = answer(grpc.infer(model, [text(over_grpc, prompt)], **asked))
    assert len(ids) == count
    assert (said, ids) == answer(http.infer(model, [text(over_http, prompt)], **asked))
    streaming = streamed(grpc, model, [text(over_grpc, prompt)], request_id="s", **asked)
    assert streaming == (said, ids, "length"), streaming

    # In JSON, without anything in binary.
    plain = over_http.InferInput("text_input", [1], "BYTES")
    plain.set_data_from_numpy(np.array([prompt], dtype=object), binary_data=False)
    wanted = [
        over_http.InferRequestedOutput("tokens", binary_data=False),
        over_http.InferRequestedOutput("text_output", binary_data=True),
    ]
    mixed = http.infer(model, [plain], outputs=wanted, request_id="json", **asked)
    assert (said, ids) == answer(mixed)
    names = [it["name"] for it in mixed.get_response()["outputs"]]
    assert names == ["tokens", "text_output"] and mixed.get_response()["id"] == "json"
    assert mixed.get_response()["parameters"]["finish_reason"] == "length"

    wanted = [over_grpc.InferRequestedOutput("tokens")]
    only = grpc.infer(model, [text(over_grpc, prompt)], outputs=wanted, **asked)
    assert only.as_numpy("text_output") is None and only.as_numpy("tokens").tolist() == ids
    return ids


def sampling_is_repeatable(clients, model, prompt):
    grpc, http = clients
    drawn = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "seed": 7}
    asked = {"parameters": {"max_tokens": 12, **drawn}}
    drawn = answer(grpc.infer(model, [text(over_grpc, prompt)], **asked))
    assert drawn == answer(http.infer(model, [text(over_http, prompt)], **asked))
    asked["parameters"]["seed"] = 8
    assert drawn != answer(grpc.infer(model, [text(over_grpc, prompt)], **asked))


def sequences(clients, model, prompt, ids):
    """A sequence is a session: it goes on where it was, over either wire, and one that starts is new."""
    grpc, http = clients
    half = {"parameters": {"max_tokens": len(ids) // 2, **DRAWN}}
    for name in (4_000_000_000, "a sequence"):
        begin = {"sequence_id": name, "sequence_start": True}
        for _ in range(2):
            first = answer(grpc.infer(model, [text(over_grpc, prompt)], **begin, **half))[1]
            assert first == ids[: len(first)]
        # Without a prompt it just goes on.
        rest = answer(http.infer(model, [], sequence_id=name, **half))[1]
        assert first + rest == ids, (first, rest, ids)
        more = [tokens(over_grpc, [1, 2], np.int32)]
        last = grpc.infer(model, more, sequence_id=name, sequence_end=True, **half)
        assert len(answer(last)[1]) == len(first)
        refused(
            lambda: grpc.infer(model, [], sequence_id=name, **half), "NOT_FOUND", "was deleted"
        )
        refused(lambda: http.infer(model, [], sequence_id=name, **half), "404", "was deleted")
    refused(lambda: grpc.infer(model, [], sequence_id=77, **half), "NOT_FOUND", "does not exist")


def repeated_requests_are_answered_once(grpc, model, prompt):
    """A request with an id in a sequence, sent again, is not run again."""
    asked = {"sequence_id": 5, "request_id": "once", "parameters": {"max_tokens": 4}}
    first = answer(grpc.infer(model, [text(over_grpc, prompt)], sequence_start=True, **asked))
    again = grpc.infer(model, [text(over_grpc, prompt)], sequence_start=True, **asked)
    assert first == answer(again)
    other = {**asked, "request_id": "other"}
    positions = [
        grpc.infer(model, [], **other).get_response().parameters["position"].int64_param
        for _ in range(2)
    ]
    assert positions[0] == positions[1], positions
    grpc.infer(model, [], sequence_id=5, sequence_end=True, parameters={"max_tokens": 1})


def sequences_on_one_stream(grpc, model, prompt, ids):
    """Requests of two sequences, mixed on one stream: each is answered in order."""
    responses = queue.Queue()
    grpc.start_stream(callback=lambda result, error: responses.put((result, error)))
    n_turns, per_turn = 4, len(ids) // 4
    for turn in range(n_turns):
        for sequence in (11, 12):
            inputs = [text(over_grpc, prompt)] if turn == 0 else []
            grpc.async_stream_infer(
                model,
                inputs,
                request_id=f"{sequence}/{turn}",
                sequence_id=sequence,
                sequence_start=turn == 0,
                sequence_end=turn == n_turns - 1,
                enable_empty_final_response=True,
                parameters={"max_tokens": per_turn, **DRAWN},
            )
    said, ended = {11: [], 12: []}, []
    while len(ended) < 2 * n_turns:
        result, error = responses.get(timeout=60)
        assert error is None, error
        response = result.get_response()
        sequence, turn = map(int, response.id.split("/"))
        if response.parameters["triton_final_response"].bool_param:
            ended.append((sequence, turn))
        else:
            said[sequence] += result.as_numpy("tokens").tolist()
    grpc.stop_stream()
    for sequence in (11, 12):
        assert [turn for of, turn in ended if of == sequence] == list(range(n_turns)), ended
        assert said[sequence] == ids[: n_turns * per_turn], said


def mistakes(clients, model, prompt):
    grpc, http = clients
    for module, client, invalid in ((over_grpc, grpc, "INVALID_ARGUMENT"), (over_http, http, "400")):
        prompted = [text(module, prompt)]

        def infer(inputs=prompted, **asked):
            return lambda: client.infer(model, inputs, **asked)

        refused(infer(parameters={"max_tokns": 1}), invalid, "max_tokns")
        refused(infer(parameters={"temperature": -1.0}), invalid, "temperature")
        refused(infer(parameters={"temperature": "hot"}), invalid, "temperature")
        refused(infer(priority=1), invalid, "priority")
        refused(infer([]), invalid, "no token")
        refused(infer([text(module, prompt), tokens(module, [1])]), invalid, "one of them")
        refused(infer([tokens(module, [1 << 20])]), invalid, "1048576")
        refused(infer([tokens(module, [-1])]), invalid, "no token")
        wrong = module.InferInput("pixels", [1], "FP32")
        wrong.set_data_from_numpy(np.zeros(1, dtype=np.float32))
        refused(infer([wrong]), invalid, "not text_input")
        mistyped = module.InferInput("tokens", [1], "FP32")
        mistyped.set_data_from_numpy(np.zeros(1, dtype=np.float32))
        refused(infer([mistyped]), invalid, "INT64")
        refused(infer(outputs=[module.InferRequestedOutput("logits")]), invalid, "logits")
        refused(
            lambda: client.infer("nobody", prompted),
            "NOT_FOUND" if client is grpc else "404",
            "nobody",
        )
    try:
        streamed(grpc, model, [], request_id="wrong")
        raise AssertionError("an empty prompt was streamed")
    except InferenceServerException as error:
        assert "no token" in error.message(), error
    grpc.stop_stream()


def counted(clients, model):
    for client, as_json in zip(clients, ({"as_json": True}, {})):
        [stats] = client.get_inference_statistics(model, **as_json)["model_stats"]
        answered = int(stats["inference_count"])
        assert 10 < answered < int(stats["execution_count"]), stats
        success = stats["inference_stats"]["success"]
        assert int(success["count"]) == answered and 0 < int(success["ns"]), stats
        everyone = client.get_inference_statistics(**as_json)["model_stats"]
        assert model in [it["name"] for it in everyone]


def main():
    grpc_address, http_address, model, prompt, count = sys.argv[1:]
    grpc = over_grpc.InferenceServerClient(grpc_address)
    http = over_http.InferenceServerClient(http_address, concurrency=2)
    clients = (grpc, http)
    descriptors_agree(grpc._channel)
    describes_itself(grpc, model, over_grpc)
    describes_itself(http, model, over_http)
    ids = same_answers(clients, model, prompt, int(count))
    sampling_is_repeatable(clients, model, prompt)
    sequences(clients, model, prompt, ids)
    repeated_requests_are_answered_once(grpc, model, prompt)
    sequences_on_one_stream(grpc, model, prompt, ids)
    mistakes(clients, model, prompt)
    counted(clients, model)
    print(*ids)


if __name__ == "__main__":
    main()
