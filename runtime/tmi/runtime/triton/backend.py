"""Model of Triton's Python backend: the bundle beside its `model.py`, with the tensors of `tmi serve`.

Each request is one case. A request that is not predicted has an error with the code of its check; nothing of a request
is logged. Requests with the same case id are predicted one after another, and a fault in one case fails no other.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tmi.runtime.service.case_queue import CaseQueue
from tmi.runtime.service.outputs import MODEL, MODEL_VERSION, input_metadata, output_tensors, result_document
from tmi.runtime.service.protocol import BYTES, InferRequest, Tensor
from tmi.runtime.service.request_errors import RequestError, bad_request
from tmi.runtime.service.uploads import case_of_tensors
from tmi.runtime.serving.predictor import Predictor
from tmi.runtime.serving.results import CaseResult, Prediction, RejectedCase
from tmi.runtime.triton.repository import BUNDLE_FOLDER
from tmi.toolkit.cases.file_bytes import CaseBytes
from tmi.toolkit.errors import InputRejectedError

TRITON_MODULE = "triton_python_backend_utils"
"""Module that Triton gives to its Python backend."""


class TritonPythonModel:
    """The class that Triton makes for each instance of the model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle: its files, the self-test of the engine, and the queue of cases.

        Args:
            args: Triton's: `model_config` (JSON), `model_repository` (folder of the model), `model_version`.

        Raises:
            TmiError: the bundle, its engine or an option cannot be used; Triton does not load the model.
        """
        self._triton = importlib.import_module(TRITON_MODULE)
        config = json.loads(args["model_config"])
        options = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        threads, trust_level = options.get("threads"), options.get("trust_level")
        self._predictor = Predictor.open(
            Path(args["model_repository"]) / args.get("model_version", MODEL_VERSION) / BUNDLE_FOLDER,
            engine=options.get("engine", "auto"),
            precision=options.get("precision", "auto"),
            threads=None if threads is None else int(threads),
            trust_level=None if trust_level is None else float(trust_level),
            log=self._triton.Logger.log_info,
        )
        record = self._predictor.engine_record
        self._triton.Logger.log_info(f"{MODEL}: engine {record.name} in {record.precision} ({record.reason})")
        predict = partial(self._predictor.stream, exact=True)
        self._queue = CaseQueue(predict, max_batch=max(1, config.get("max_batch_size", 1)))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return the response of each request, in order."""
        submitted = [self._submit(request) for request in requests]
        return [self._response(request, entry) for request, entry in zip(requests, submitted, strict=True)]

    def finalize(self) -> None:
        """Free the engine."""
        self._queue.close()
        self._predictor.close()

    def _submit(self, request: Any) -> Future[CaseResult] | RequestError | InputRejectedError:
        try:
            return self._queue.submit(self._case(request), deadline=math.inf)
        except (RequestError, InputRejectedError) as error:
            return error

    def _case(self, request: Any) -> CaseBytes:
        inputs = {}
        for entry in input_metadata():
            given = self._triton.get_input_tensor_by_name(request, entry["name"])
            if given is None:
                continue
            array = given.as_numpy()
            if array.shape[0] != 1:
                raise bad_request("the request is a batch of cases", fix="send one case; Triton batches requests")
            flat = array.ravel()
            values = tuple(flat) if entry["datatype"] == BYTES else flat.astype(np.float64)
            inputs[entry["name"]] = Tensor(
                name=entry["name"], datatype=entry["datatype"], shape=array.shape, values=values
            )
        parameters = json.loads(request.parameters() or "{}")
        return case_of_tensors(InferRequest(id=None, inputs=inputs, outputs=None, binary=True, parameters=parameters))

    def _response(self, request: Any, entry: Future[CaseResult] | RequestError | InputRejectedError) -> Any:
        if isinstance(entry, RequestError):
            return self._error(entry.code, entry.what, entry.fix)
        if isinstance(entry, InputRejectedError):
            return self._error(entry.code, entry.what, entry.fix)
        failure = entry.exception()
        if failure is not None:
            self._triton.Logger.log_error(f"{MODEL}: a prediction failed: {type(failure).__name__}")
            return self._error("failed", "the prediction of this case failed", "see Triton's log", kind="INTERNAL")
        result = entry.result()
        if isinstance(result, RejectedCase):
            return self._error(result.code, result.what, result.fix)
        assert isinstance(result, Prediction)
        wanted = set(request.requested_output_names())
        bundle, engine = self._predictor.bundle, self._predictor.engine_record
        document = result_document(result, bundle=bundle, engine=engine, version=version("tmi-clnet"))
        tensors = output_tensors(result, document=document, manifest=bundle.manifest)
        return self._triton.InferenceResponse(
            output_tensors=[self._triton.Tensor(t.name, _array(t)) for t in tensors if t.name in wanted]
        )

    def _error(self, code: str, what: str, fix: str, *, kind: str = "INVALID_ARG") -> Any:
        error = self._triton.TritonError
        return self._triton.InferenceResponse(
            output_tensors=[], error=error(f"{what} [{code}]; fix: {fix}", getattr(error, kind))
        )


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Elements of a tensor in its shape; texts as objects, which keep trailing zero bytes."""
    values = tensor.values if isinstance(tensor.values, np.ndarray) else np.array(tensor.values, dtype=np.object_)
    return values.reshape(tensor.shape)
