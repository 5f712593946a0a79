"""The command that edits images: what it writes, and one line for what cannot be."""

import numpy as np
import pytest
from mains import run as run_main
from PIL import Image
from test_guided_runs import config_of, make_run

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]


def edit(*lines):
    """Run several command lines; return what they printed, errors too, in a row."""
    said = []
    for line in lines:
        done = run_main("edit", *line)
        assert done.returncode in (0, 2), done
        lines = (done.stdout + done.stderr).splitlines()
        said += [line for line in lines if not line.startswith("INFO: ")]
    return said


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("edit")
    make_run(root / "run", config_of())
    make_run(root / "plain", config_of(model=dict(class_conditional=False)))
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    np.savez(root / "images.npz", images=images)
    np.savez(root / "wrong.npz", images=images[:, :2], mask=images[0, :2, :, 0])
    mask = np.zeros((4, 4), np.uint8)
    mask[1] = 255
    Image.fromarray(mask).save(root / "mask.png")
    Image.fromarray(images[0, :, :, 0]).save(root / "one.png")
    (root / "broken.png").write_text("not a picture")
    return root, images


@pytest.mark.slow
def test_each_edit_writes_a_grid_and_its_images(files):
    root, images = files
    common = (f"--workdir={root / 'run'}", f"--images={root / 'images.npz'}")

    def line(name, *more):
        return (*common, f"--edit={name}", f"--out={root / name}", *more)

    said = edit(
        line("inpaint", f"--mask={root / 'mask.png'}", "--draws=2", "--jump_length=1"),
        line("interpolate", "--n=1", "--frames=3", "--depth=2", "--label=1"),
        line("sdedit", "--n=2", "--depth=1,4"),
    )
    assert len(said) == 6 and said[0] == f"grid: {root / 'inpaint'}.png"

    inpainted = np.load(root / "inpaint.npz")["images"]
    assert inpainted.shape == (3, 2, 4, 4, 1)
    for draw in (0, 1):
        np.testing.assert_array_equal(inpainted[:, draw, 1], images[:, 1])  # the known row
    assert np.any(inpainted[:, 0] != inpainted[:, 1])
    assert np.any(inpainted[:, 0, 0] != images[:, 0])

    between = np.load(root / "interpolate.npz")["images"]
    assert between.shape == (1, 3, 4, 4, 1) and np.any(between[:, 0] != between[:, 2])
    with Image.open(root / "interpolate.png") as picture:
        assert picture.size[0] == 5 * 32 + 6 * 2  # both ends, and three frames

    redrawn = np.load(root / "sdedit.npz")["images"].astype(np.float64)
    assert redrawn.shape == (2, 2, 4, 4, 1)
    assert np.any(redrawn[:, 0] != redrawn[:, 1])


def test_what_cannot_be_is_one_line_each(files):
    root, _ = files
    common = (f"--workdir={root / 'run'}", f"--images={root / 'images.npz'}")
    cases = [
        (("--edit=sdedit", "--depth=5"), "--depth must be timesteps in 1..4 (T), found 5"),
        (("--edit=sdedit", "--depth=half"), "--depth must be timesteps in 1..4 (T), found half"),
        (("--edit=interpolate", "--depth=1,2"), "--edit=interpolate takes one --depth, found 1,2"),
        (("--edit=sdedit", "--label=3"), "--label must be in 0..2, found 3"),
        (
            ("--edit=sdedit", "--label=1", f"--workdir={root / 'plain'}"),
            "--label=1 is given, but the model has no classes",
        ),
        (("--edit=sdedit", f"--images={root / 'none.png'}"), "none.png cannot be read"),
        (("--edit=sdedit", f"--images={root / 'broken.png'}"), "broken.png cannot be read"),
        (
            ("--edit=sdedit", f"--images={root / 'wrong.npz'}"),
            "uint8 images of (4, 4, 1) (H, W, C)",
        ),
        (("--edit=interpolate", f"--images={root / 'one.png'}"), "takes two images, but"),
        (("--edit=inpaint", f"--mask={root / 'images.npz'}"), "has no array 'mask'"),
        (("--edit=inpaint", f"--mask={root / 'wrong.npz'}"), "must have 4x4 pixels like the im"),
        (("--edit=inpaint", "--num_resamples=0"), "num_resamples and jump_length must be at least"),
    ]
    said = edit(*[(*common, f"--out={root / 'out'}", *flags) for flags, _ in cases])
    assert len(said) == len(cases)
    for (flags, message), line in zip(cases, said, strict=True):
        assert line.startswith("error: ") and message in line, (flags, line)
