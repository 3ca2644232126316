"""A fake CUDA device with numpy arrays and a simulated clock, for tests of the TensorRT engine.

It has the calls that the engine makes of `tmi.runtime.engines.cuda`. A copy to the device takes 1 simulated second, an
inference 10 and a copy to the host 2. Its only plan computes `y = 2 * x`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tmi.runtime.bundle.manifest import GraphSpec, TensorSpec
from tmi.runtime.engines.tensorrt import SLOTS, TrtEngine, _Graph

UPLOAD_S, INFERENCE_S, DOWNLOAD_S = 1.0, 10.0, 2.0


class Clock:
    now = 0.0


class Stream:
    handle = 1

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def mark(self, event: SimpleNamespace) -> None:
        event.at = self.clock.now

    def wait(self, event: SimpleNamespace) -> None:
        assert event.at is not None, "the event was not recorded"

    def synchronise(self) -> None:
        """Do nothing: every call is synchronous."""


class Buffer:
    def __init__(self, clock: Clock, shape: tuple[int, ...], dtype: str) -> None:
        self.clock, self.device = clock, self
        self.array = np.full(shape, np.nan, dtype=dtype)

    def upload(self, array: Any, stream: int) -> None:
        self.clock.now += UPLOAD_S
        self.array[: len(array)] = array

    def download(self, shape: tuple[int, ...], stream: int) -> None:
        self.clock.now += DOWNLOAD_S

    def host(self, shape: tuple[int, ...]) -> Any:
        return self.array[: shape[0]]


class Context:
    def __init__(self, clock: Clock) -> None:
        self.clock, self.at, self.rows = clock, {}, 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> None:
        """Do nothing: the plan has one profile."""

    def set_tensor_address(self, name: str, device: Buffer) -> None:
        self.at[name] = device

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.rows = shape[0]
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.clock.now += INFERENCE_S
        self.at["y"].array[: self.rows] = 2 * self.at["x"].array[: self.rows]
        return True


def fake_trt_engine(*, largest: int) -> TrtEngine:
    """An engine with the graph `double` open; its profile takes batches of at most `largest` rows."""
    clock = Clock()
    spec = GraphSpec(
        name="double",
        role="ct",
        inputs=(TensorSpec(name="x", dtype="float32", shape=("B", 3)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("B", 3)),),
        artefacts={},
    )

    def captured(stream: Stream, work: Any) -> Any:
        return SimpleNamespace(launch=lambda stream: work(), free=lambda: None)

    engine = TrtEngine()
    engine._cuda = SimpleNamespace(
        PinnedBuffer=lambda shape, dtype: Buffer(clock, shape, dtype),
        new_event=lambda: SimpleNamespace(at=None),
        wait_for=lambda event: None,
        seconds_between=lambda earlier, later: later.at - earlier.at,
        CapturedGraph=captured,
    )
    engine._trt = SimpleNamespace(ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=0))
    engine._copying, engine._computing = Stream(clock), Stream(clock)
    engine._names["double"] = {"x": "x", "y": "y"}
    plan = SimpleNamespace(num_optimization_profiles=1, create_execution_context=lambda strategy: Context(clock))
    slots = [engine._slot(plan, spec, largest, 1) for _ in range(SLOTS)]
    engine._specs["double"], engine._loaded["double"] = spec, _Graph(engine=plan, slots=slots, largest=largest)
    return engine
