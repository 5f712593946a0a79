"""Tiny networks of OpenAI's code: their flags, and weights and inputs by a rule of names and seeds.

`tests/fixtures/openai.json` has what their own code computes for these weights. It was written by
`python tests/test_peers_openai.py GUIDED IMPROVED`, with the two repositories' directories.
"""

import json
import pathlib
import struct
import zipfile
import zlib

import numpy as np

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "openai.json"
TINY = "--num_channels 32 --num_res_blocks 1 --attention_resolutions 8 --image_size 16"
CASES = {  # name -> (code, flags)
    "guided, legacy attention": (
        "guided-diffusion",
        f"{TINY} --channel_mult 1,2 --num_head_channels 16 --resblock_updown True --learn_sigma "
        "True --class_cond True --noise_schedule cosine --diffusion_steps 100",
    ),
    "guided, new attention": (
        "guided-diffusion",
        f"{TINY} --channel_mult 2,4 --num_head_channels 16 --resblock_updown False --learn_sigma "
        "True --class_cond True --use_new_attention_order True --use_scale_shift_norm False",
    ),
    "improved": (
        "improved-diffusion",
        "--image_size 32 --num_channels 32 --num_res_blocks 1 --learn_sigma True "
        "--diffusion_steps 4000 --noise_schedule cosine --attention_resolutions 16",
    ),
    "classifier": (
        "classifier",
        "--image_size 64 --classifier_width 32 --classifier_depth 1 "
        "--classifier_attention_resolutions 8",
    ),
}
RESPACINGS = ((1000, "25"), (1000, "250"), (4000, "100"), (1000, "ddim25"), (4000, "ddim50"))


def weights(shapes):
    """The weights of these shapes: each by a seed of its own name."""
    found = {}
    for name, shape in shapes.items():
        z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        gain = 0.7 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        found[name] = (gain * z + (len(shape) == 1) * 0.5).astype(np.float32)
    return found


def inputs(size):
    """x [2, size, size, 3], t [2] from 0 on, and labels [2]."""
    x = np.random.RandomState(0).standard_normal((2, size, size, 3)).astype(np.float32)
    return x, np.array([3, 77]), np.array([5, 999])


def summary(output):
    """Some numbers of an output: about 50 of its entries, and its mean and deviation."""
    flat = np.asarray(output, np.float64).ravel()
    entries = flat[:: max(1, flat.size // 50)]
    return [round(float(value), 6) for value in (*entries, flat.mean(), flat.std())]


def fixture():
    return json.loads(FIXTURE.read_text())


def save(path, state):
    """Write a state_dict as torch.save does, float32."""

    def number(n):
        return b"J" + struct.pack("<i", n)

    def text(word):
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    program = b"\x80\x02}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, (name, value) in enumerate(state.items()):
            value = np.ascontiguousarray(value, "<f4")
            strides = [stride // 4 for stride in value.strides]
            storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(key))
            storage += text("cpu") + number(value.size) + b"tQ"
            sizes = [
                b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (value.shape, strides)
            ]
            tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + b"".join(sizes)
            tensor += b"\x89ccollections\nOrderedDict\n)RtR"
            program += text(name) + tensor + b"s"
            archive.writestr(f"archive/data/{key}", value.tobytes())
        archive.writestr("archive/data.pkl", program + b".")
    return path
