"""Sources: memory and records give the same bytes."""

import numpy as np
import pytest

from ddpm_jax.data.sources import CHUNK, RecordSource, load

SHAPE = (3, 5, 1)


class Records:
    """Records that are numbers; the class counts how many are read at a time."""

    def __init__(self, count: int):
        self.count = count
        self.largest = 0

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, keys: list[int]) -> list[int]:
        assert all(type(key) is int for key in keys)
        self.largest = max(self.largest, len(keys))
        return [range(self.count)[key] for key in keys]


def paint(record: int) -> tuple[np.ndarray, int]:
    return np.full(SHAPE, record % 251, np.uint8), record % 10


@pytest.mark.parametrize("count", [1, 2, 7, CHUNK, CHUNK + 1])
def test_ram_and_records_hold_the_same_bytes(count):
    records = RecordSource(Records(count), paint)
    ram = load(records, SHAPE)
    assert len(ram) == len(records) == count
    for indices in (np.arange(count)[::-1], np.zeros(5, np.int64), np.array([count - 1])):
        for source in (ram, records):
            images, labels = source.read(indices)
            np.testing.assert_array_equal(images[:, 0, 0, 0], indices % 251)
            np.testing.assert_array_equal(labels, indices % 10)
            assert images.shape == (len(indices), *SHAPE)
            assert images.dtype == np.uint8 and labels.dtype == np.int32


def test_loading_reads_in_chunks():
    records = Records(3 * CHUNK + 5)
    load(RecordSource(records, paint), SHAPE)
    assert records.largest == CHUNK


def test_what_is_read_may_be_written_to():
    ram = load(RecordSource(Records(4), paint), SHAPE)
    for source in (ram, RecordSource(Records(4), paint)):
        images, _ = source.read(np.arange(4))
        images[:] = 255
        again, _ = source.read(np.arange(4))
        np.testing.assert_array_equal(again[:, 0, 0, 0], np.arange(4))


def test_an_error_while_decoding_reaches_the_reader():
    def fail(record):
        raise OSError(f"record {record} is damaged")

    with pytest.raises(OSError, match="record 2 is damaged"):
        RecordSource(Records(3), fail).read(np.array([2]))
