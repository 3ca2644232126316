"""Buffer pool: memory is reused, and never while it is referenced."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tmi.toolkit.compute.buffer_pool import MAX_SIZE_RATIO, MIN_POOLED_BYTES, BufferPool

SHAPE = (4, 256, 512)
MIB = 2**20


def address(array: np.ndarray) -> int:
    return array.ctypes.data


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.bool_, np.float64])
def test_array_equals_numpy_empty(dtype):
    """Arrays are contiguous, writeable and aligned, with the requested shape and dtype."""
    array = BufferPool().empty((3, 700, 1001), dtype)
    assert (array.shape, array.dtype) == ((3, 700, 1001), np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned
    array[...] = 1
    assert (array == 1).all()


def test_memory_of_released_array_is_reused():
    """A released array's memory is used for the next one."""
    pool = BufferPool()
    array = pool.empty(SHAPE, np.float32)
    before = address(array)
    del array
    assert pool.free_bytes == 2 * MIB
    again = pool.empty(SHAPE, np.float32)
    assert address(again) == before
    assert pool.free_bytes == 0


VIEWS = {
    "the array": lambda a: a,
    "a slice": lambda a: a[1:2, 3],
    "a transposed view": lambda a: a.transpose(2, 1, 0)[::-1],
    "another dtype": lambda a: a.view(np.int32)[None],
    "a view of a view": lambda a: a[None][0][1:][:, ::2],
    "a memoryview": lambda a: a.data,
    "a buffer's array": lambda a: np.frombuffer(a.data, np.uint8),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_view_keeps_memory_of_its_array(view):
    """Any view or buffer of an array keeps its memory and values."""
    pool = BufferPool()
    array = pool.empty(SHAPE, np.float32)
    array[...] = 7.0
    reference = view(array)
    before = np.array(reference)
    del array
    assert pool.free_bytes == 0
    others = [pool.empty(SHAPE, np.float32) for _ in range(3)]
    for other in others:
        other[...] = -1.0
    np.testing.assert_array_equal(np.array(reference), before)
    del reference
    assert pool.free_bytes == 2 * MIB


def test_tensor_keeps_memory_of_its_array():
    """A torch tensor of the array keeps its memory."""
    torch = pytest.importorskip("torch", reason="torch is an extra")
    pool = BufferPool()
    tensor = torch.from_numpy(pool.empty(SHAPE, np.float32))[1:]
    assert pool.free_bytes == 0
    del tensor
    assert pool.free_bytes == 2 * MIB


def test_block_size_ratio_is_bounded():
    """A block is used for an array down to 1 / MAX_SIZE_RATIO of its size."""
    pool = BufferPool()
    pool.empty((8 * MIB,), np.uint8)  # released at once
    near = pool.empty((8 * MIB // MAX_SIZE_RATIO,), np.uint8)
    assert pool.free_bytes == 0
    del near
    far = pool.empty((8 * MIB // MAX_SIZE_RATIO - 1,), np.uint8)
    assert address(far)
    assert pool.free_bytes <= 8 * MIB


def test_smallest_fitting_block_is_used():
    """The pool is best fit."""
    pool = BufferPool()
    blocks = [pool.empty((n * MIB,), np.uint8) for n in (6, 4, 5)]
    expected = address(blocks[1])
    blocks.clear()
    assert address(pool.empty((4 * MIB,), np.uint8)) == expected


def test_pool_size_is_bounded_by_peak_use():
    """Free and used memory never exceed the peak use."""
    pool = BufferPool()
    rng = np.random.default_rng(0)
    peak, arrays = 0, []
    for _ in range(200):
        arrays = arrays[-int(rng.integers(1, 4)) :]
        arrays.append(pool.empty((int(rng.integers(MIB, 9 * MIB)),), np.uint8))
        in_use = sum(array.nbytes for array in arrays)
        # a block may be up to MAX_SIZE_RATIO times larger than its array
        peak = max(peak, MAX_SIZE_RATIO * in_use)
        assert pool.free_bytes + in_use <= peak


def test_small_arrays_are_not_pooled():
    """Arrays below MIN_POOLED_BYTES, empty ones included, come from numpy."""
    pool = BufferPool()
    pool.empty((MIN_POOLED_BYTES - 1,), np.uint8)  # released at once
    assert pool.free_bytes == 0
    assert pool.empty((0, 3), np.float32).shape == (0, 3)


def test_threads_never_share_memory():
    """Arrays of concurrent threads do not overlap."""
    pool = BufferPool()

    def work(number: int) -> bool:
        for _ in range(50):
            array = pool.empty((MIB,), np.uint8)
            array[...] = number
            half = array[: MIB // 2]
            del array
            if not (half == number).all():
                return False
        return True

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(work, range(8)))
    assert 0 < pool.free_bytes <= 2 * 8 * MIB, (
        "a view of the previous round is still referenced when the next array is allocated"
    )
