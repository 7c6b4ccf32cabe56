#!/usr/bin/env python3
"""Asks a server that wants tokens over the Open Inference Protocol, as two tenants, and has it killed in between.

Usage: triton_tenants.py GRPC_HOST:PORT HTTP_HOST:PORT MODEL PROMPT TOKEN OTHER_TOKEN

Prints "kill" when the server is to be killed and started again at the same port of gRPC, and "revoke" when the first
tenant is to be taken out of the tenants' file.
"""

import queue
import sys
import time

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

N_TOKENS = 8
ASKED = {"parameters": {"max_tokens": N_TOKENS, "temperature": 1.0, "seed": 7}}
POLLS_MAX = 600


def infer(client, module, token, prompt=None, **asked):
    inputs = []
    if prompt:
        inputs = [module.InferInput("text_input", [1], "BYTES")]
        inputs[0].set_data_from_numpy(np.array([prompt], dtype=object))
    headers = {"authorization": f"Bearer {token}"} if token else {}
    result = client.infer(MODEL, inputs, headers=headers, **asked, **ASKED)
    return result.as_numpy("tokens").tolist()


def refused(call, *statuses):
    try:
        call()
    except InferenceServerException as error:
        assert any(it in str(error.status()) for it in statuses), error
    else:
        raise AssertionError("nothing was refused")


def strangers(grpc, http):
    assert http.is_server_live() and http.is_server_ready()
    for token in (None, "x" * 64):
        refused(lambda: infer(grpc, over_grpc, token, PROMPT), "UNAUTHENTICATED")
        refused(lambda: infer(http, over_http, token, PROMPT), "401")
    refused(lambda: http.get_model_metadata(MODEL), "401")
    refused(grpc.get_server_metadata, "UNAUTHENTICATED")


def killed(grpc, token):
    """Has the server killed, and waits until it is back."""
    headers = {"authorization": f"Bearer {token}"}

    def is_ready():
        try:
            return grpc.is_server_ready(headers=headers)
        except InferenceServerException:
            return False

    print("kill", flush=True)
    # The one that is to die answers until it does.
    for expected, pause_s in ((False, 0.002), (True, 0.05)):
        for _ in range(POLLS_MAX):
            if is_ready() == expected:
                break
            time.sleep(pause_s)
        else:
            raise AssertionError(f"the server is {'gone' if expected else 'there'} still")


def revoked(grpc, token):
    """Has the tenant taken away while a stream of its runs: the stream ends, and says why."""
    responses = queue.Queue()
    headers = {"authorization": f"Bearer {token}"}
    prompt = over_grpc.InferInput("text_input", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([PROMPT], dtype=object))
    grpc.start_stream(lambda result, error: responses.put(error), headers=headers)
    grpc.async_stream_infer(MODEL, [prompt], parameters={"max_tokens": 1 << 16})
    assert responses.get(timeout=60) is None
    print("revoke", flush=True)
    while not (error := responses.get(timeout=60)):
        pass
    assert "UNAUTHENTICATED" in str(error.status()), error
    grpc.stop_stream()
    refused(lambda: infer(grpc, over_grpc, token, PROMPT), "UNAUTHENTICATED")


def main():
    grpc = over_grpc.InferenceServerClient(GRPC)
    http = over_http.InferenceServerClient(HTTP)
    strangers(grpc, http)
    # One name for two tenants: two sequences.
    name = {"sequence_id": "mine"}
    whole = infer(grpc, over_grpc, TOKEN, PROMPT, sequence_start=True, **name)
    refused(lambda: infer(grpc, over_grpc, OTHER, **name), "NOT_FOUND")
    refused(lambda: infer(http, over_http, OTHER, **name), "404")
    other = infer(http, over_http, OTHER, PROMPT[::-1], sequence_start=True, **name)
    whole += infer(http, over_http, TOKEN, **name)
    assert whole[:N_TOKENS] != other

    infer(grpc, over_grpc, TOKEN, PROMPT, sequence_start=True, **name)
    killed(grpc, TOKEN)
    rest = infer(grpc, over_grpc, TOKEN, sequence_end=True, **name)
    assert rest == whole[N_TOKENS:], (rest, whole)
    refused(lambda: infer(grpc, over_grpc, TOKEN, **name), "NOT_FOUND")
    infer(grpc, over_grpc, OTHER, sequence_end=True, **name)
    revoked(grpc, TOKEN)


if __name__ == "__main__":
    GRPC, HTTP, MODEL, PROMPT, TOKEN, OTHER = sys.argv[1:]
    main()
