"""Files of torch.save are read without torch; hostile, broken and foreign files are refused."""

import collections
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.pretrained.torch_file import MAGIC, PROTOCOL, read_tensors

formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
MACHINE = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}


def write_zip(path, program: bytes, storages=(), compression=zipfile.ZIP_STORED):
    """Write a zip archive in torch's layout around any pickle program."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        for key, block in storages:
            archive.writestr(f"archive/data/{key}", block)
    return path


def write_legacy(path, program: bytes, storages=(), machine=MACHINE):
    """Write a file of the legacy format around any pickle program; the storages are float32."""
    parts = [pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, machine)]
    parts += [program, pickle.dumps([key for key, _ in storages], 2)]
    parts += [struct.pack("<q", len(block) // 4) + block for _, block in storages]
    path.write_bytes(b"".join(parts))
    return path


def write(zipped, path, *args):
    return (write_zip if zipped else write_legacy)(path, *args)


def program_of(shape, strides, offset=0, size=6, key="0") -> bytes:
    """Return the pickle of {"w": a float32 tensor in a storage of `size` numbers}, made by hand."""

    def number(n):
        return b"J" + struct.pack("<i", n)

    def text(word):
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += number(size) + b"tQ"
    sizes = [b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (shape, strides)]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + b"".join(sizes)
    tensor += b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("w") + tensor + b"s."


BLOCK = np.arange(6, dtype="<f4").tobytes()


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@formats
def test_what_torch_saves_is_read(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = collections.OrderedDict(
        whole=base,
        part=base[1, :, 1::2],  # the three share a storage
        turned=base.permute(2, 0, 1),
        double=torch.linspace(0, 1, 5, dtype=torch.float64),
        half=torch.tensor([[1.5, -2.0]], dtype=torch.float16),
        counts=torch.tensor([1, -(2**40)]),
        scalar=torch.tensor(7),
        bytes=torch.tensor([0, 255], dtype=torch.uint8),
        flags=torch.tensor([True, False]),
        ints=torch.tensor([-3], dtype=torch.int32),
        parameter=torch.nn.Parameter(base[0]),
    )
    state._metadata = collections.OrderedDict({"": {"version": 1}})  # as a Module's state_dict has
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "a.pth")
    assert list(found) == list(state)
    for name, tensor in state.items():
        expected = tensor.detach().numpy()
        assert found[name].dtype == expected.dtype and found[name].flags.c_contiguous, name
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].shape == expected.shape
    torch.save(dict(state), tmp_path / "4.pth", pickle_protocol=4)
    assert list(read_tensors(tmp_path / "4.pth")) == list(state)


@formats
def test_a_program_written_by_hand_is_followed(zipped, tmp_path):
    path = write(zipped, tmp_path / "a.pth", program_of((2, 2), (3, 1), 1), [("0", BLOCK)])
    np.testing.assert_array_equal(read_tensors(path)["w"], [[1, 2], [4, 5]])


class Hostile:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@formats
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_program_that_would_run_a_command_is_refused_by_name(zipped, protocol, tmp_path):
    command = f"touch {tmp_path}/run"
    program = pickle.dumps({"w": Hostile(os.system, (command,))}, protocol)
    pickle.loads(program)
    (tmp_path / "run").unlink()  # so pickle runs the program's command
    path = write(zipped, tmp_path / "a.pth", program)
    assert f"'{os.system.__module__}.system'" in refusal(path)
    path.write_bytes(program)  # not in any of torch's formats
    assert "neither of torch's formats" in refusal(path)
    assert not (tmp_path / "run").exists()


@formats
@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"w": Hostile(eval, ("1",))}, "asks for 'builtins.eval'"),
        (
            {"w": Hostile(getattr, (collections.OrderedDict, "fromkeys"))},
            "asks for 'builtins.getattr'",
        ),
        ({"w": 1.5}, "BINFLOAT"),
        ({"w": {"model": 1}}, "holds a dict at 'w'"),
        ({"w": collections.OrderedDict}, "holds a Global at 'w'"),
        ([1], "holds a list"),
        ({1: 2}, "not a string"),
        (Hostile(collections.OrderedDict, ([("a", 1)],)), "calls 'collections.OrderedDict'"),
    ],
)
def test_all_else_than_a_dict_of_tensors_is_named_and_refused(zipped, value, named, tmp_path):
    path = write(zipped, tmp_path / "a.pth", pickle.dumps(value, 4))
    assert named in refusal(path)


@formats
@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (dict(shape=(2, 4), strides=(4, 1)), "beyond the end"),
        (dict(shape=(2, 3), strides=(3, 1), offset=1), "beyond the end"),
        (dict(shape=(1000, 1000), strides=(0, 0)), "beyond the end"),
        (dict(shape=(0,), strides=(1,)), "empty shape"),
        (dict(shape=(2,), strides=(-1,), offset=3), "impossible"),
        (dict(shape=(2,), strides=(1, 1)), "impossible"),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(zipped, tensor, named, tmp_path):
    path = write(zipped, tmp_path / "a.pth", program_of(**tensor), [("0", BLOCK)])
    assert named in refusal(path) and "'w'" in refusal(path)


@formats
def test_a_storage_of_another_length_is_refused(zipped, tmp_path):
    program = program_of((2, 3), (3, 1))
    for block in (BLOCK[:-4], BLOCK + b"more"):
        path = write(zipped, tmp_path / "a.pth", program, [("0", block)])
        expected = f"{len(block)} bytes for the 6 numbers of 'w'" if zipped else "the storage 0"
        assert expected in refusal(path)
    path = write(zipped, tmp_path / "a.pth", program, [("1", BLOCK)])
    assert ("lacks the storage" if zipped else "other storages") in refusal(path)


@formats
def test_a_file_cut_short_anywhere_is_refused(zipped, tmp_path):
    path = write(zipped, tmp_path / "a.pth", program_of((2, 3), (3, 1)), [("0", BLOCK)])
    whole = path.read_bytes()
    read_tensors(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refusal(path)


@formats
def test_damage_is_refused_or_read_and_never_a_crash(zipped, tmp_path):
    path = write(zipped, tmp_path / "a.pth", program_of((2, 3), (3, 1)), [("0", BLOCK)])
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_tensors(path)
        except UserError:
            refused += 1
    assert refused > 100


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    assert "No such file" in refusal(path)
    path.write_bytes(b"<html>not found</html>")
    assert "neither of torch's formats" in refusal(path)
    program = program_of((6,), (1,))
    write_zip(path, program, [("0", BLOCK)], zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(path)
    write_zip(path, program, [("../byteorder", b""), ("0", BLOCK)])
    assert read_tensors(path)["w"].size == 6  # names are looked up, never written to
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "")
    assert "data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/byteorder", "big")
    assert "big-endian" in refusal(path)
    write_legacy(path, program, [("0", BLOCK)], {**MACHINE, "little_endian": False})
    assert "little-endian" in refusal(path)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02" + b"(" * 9 + b".",
        b"\x80\x02" + b")\x85" + b"\x85" * 100_000 + b".",  # a tuple in a tuple in ...
        b"\x80\x02)" + b"q\x00h\x00h\x00\x86" * 60 + b"}q\x01h\x00K\x01s.",  # 2^60 leaves as a key
        b"\x80\x02)" + b"q\x00h\x00h\x00\x86" * 60 + b"Q.",  # ... as the name of a storage
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",  # announces 2^63 bytes
    ],
)
def test_bombs_are_refused_at_once(program, tmp_path):
    refusal(write_zip(tmp_path / "a.pth", program))
    refusal(write_legacy(tmp_path / "b.pth", program))


def test_the_writers_above_write_what_pythons_own_reader_understands():
    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            return {"OrderedDict": dict}.get(name, lambda *args: args)

        def persistent_load(self, identity):
            return identity[2:]

    found = Reader(io.BytesIO(program_of((2, 3), (3, 1), 0))).load()
    assert found["w"][:4] == (("0", "cpu", 6), 0, (2, 3), (3, 1))
