"""Memory is used again, and never while anything still refers to it."""

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
def test_an_array_is_like_numpys_own(dtype):
    array = BufferPool().empty((3, 700, 1001), dtype)
    assert (array.shape, array.dtype) == ((3, 700, 1001), np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned
    array[...] = 1
    assert (array == 1).all()


def test_the_memory_of_an_array_that_is_gone_is_the_next_ones():
    memory = BufferPool()
    array = memory.empty(SHAPE, np.float32)
    there = address(array)
    del array
    assert memory.free_bytes == 2 * MIB
    again = memory.empty(SHAPE, np.float32)
    assert address(again) == there
    assert memory.free_bytes == 0


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
def test_whatever_still_looks_at_an_array_keeps_its_memory(view):
    memory = BufferPool()
    array = memory.empty(SHAPE, np.float32)
    array[...] = 7.0
    kept = view(array)
    before = np.array(kept)
    del array
    assert memory.free_bytes == 0
    others = [memory.empty(SHAPE, np.float32) for _ in range(3)]
    for other in others:
        other[...] = -1.0
    np.testing.assert_array_equal(np.array(kept), before)
    del kept
    assert memory.free_bytes == 2 * MIB


def test_a_tensor_keeps_the_memory_of_its_array():
    torch = pytest.importorskip("torch", reason="torch is an extra")
    memory = BufferPool()
    tensor = torch.from_numpy(memory.empty(SHAPE, np.float32))[1:]
    assert memory.free_bytes == 0
    del tensor
    assert memory.free_bytes == 2 * MIB


def test_a_smaller_array_takes_a_larger_block_but_not_a_much_larger_one():
    memory = BufferPool()
    memory.empty((8 * MIB,), np.uint8)  # is gone at once
    near = memory.empty((8 * MIB // MAX_SIZE_RATIO,), np.uint8)
    assert memory.free_bytes == 0
    del near
    far = memory.empty((8 * MIB // MAX_SIZE_RATIO - 1,), np.uint8)
    assert address(far)
    assert memory.free_bytes <= 8 * MIB


def test_the_smallest_block_that_fits_is_taken():
    memory = BufferPool()
    blocks = [memory.empty((n * MIB,), np.uint8) for n in (6, 4, 5)]
    wanted = address(blocks[1])
    blocks.clear()
    assert address(memory.empty((4 * MIB,), np.uint8)) == wanted


def test_it_never_holds_more_than_was_needed_at_one_time():
    memory = BufferPool()
    rng = np.random.default_rng(0)
    needed, kept = 0, []
    for _ in range(200):
        kept = kept[-int(rng.integers(1, 4)) :]
        kept.append(memory.empty((int(rng.integers(MIB, 9 * MIB)),), np.uint8))
        given = sum(block.nbytes for block in kept)
        # a block may be up to MAX_SIZE_RATIO times what was asked for
        needed = max(needed, MAX_SIZE_RATIO * given)
        assert memory.free_bytes + given <= needed


def test_small_arrays_are_left_to_numpy():
    memory = BufferPool()
    memory.empty((MIN_POOLED_BYTES - 1,), np.uint8)  # is gone at once
    assert memory.free_bytes == 0
    assert memory.empty((0, 3), np.float32).shape == (0, 3)


def test_threads_never_share_an_array():
    memory = BufferPool()

    def work(number: int) -> bool:
        for _ in range(50):
            array = memory.empty((MIB,), np.uint8)
            array[...] = number
            half = array[: MIB // 2]
            del array
            if not (half == number).all():
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert 0 < memory.free_bytes <= 2 * 8 * MIB, (
        "the half of the round before is still there when the next array is made"
    )
