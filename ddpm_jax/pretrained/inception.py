"""The Inception-v3 network of the FID (Szegedy et al. 2015; Heusel et al. 2017).

It is the network of TensorFlow's `inception-2015-12-05`. The parameters have the names of its
PyTorch ports. It differs from the Inception of torchvision and Keras:

- images are resized by TensorFlow 1's bilinear rule, without half-pixel centres and antialiasing;
- average pools inside the blocks divide by the number of pixels inside the image;
- the last block (Mixed_7c) has a max pool where the block before it has an average pool;
- the Inception score (Salimans et al. 2016) uses the 1008 logits without their bias.

The features depend on the precision. So convolutions run in float32 with `Precision.HIGHEST`.
Otherwise accelerators round the inputs (TPUs to bfloat16, NVIDIA GPUs to TF32).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.types import Array, Params

SIZE = 299  # height and width of the resized images
PADDED: Any = ((1, 1), (1, 1))  # Any, because Flax accepts it but annotates str
PRECISION = jax.lax.Precision.HIGHEST
FACTORS = {"a": (1, 3), "b": (3, 1)}  # two parallel convolutions in block_e
PORT_NAMES = {  # path of a leaf inside a layer -> its name in the PyTorch ports
    ("conv", "kernel"): "conv.weight",
    ("bn", "scale"): "bn.weight",
    ("bn", "bias"): "bn.bias",
    ("bn", "mean"): "bn.running_mean",
    ("bn", "var"): "bn.running_var",
    ("kernel",): "weight",
}
UNUSED = (".num_batches_tracked", "fc.bias")  # ends of names that are ignored


def inception_features(params: Params, images: Array) -> dict[str, Array]:
    """Return the Inception features of images, for the FID and similar measures.

    Args:
      params: the parameters, from `from_state`.
      images: uint8 [N, H, W, 3], RGB, of any size; they are resized to 299 x 299.

    Returns:
      "pool": float32 [N, 2048], the mean of the last feature map over its 8 x 8 positions.
      "logits_unbiased": float32 [N, 1008], logits of the classes without their bias.

    Raises:
      UserError: the images are of another type or shape.
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"Inception needs images of uint8 [N, H, W, 3], found {images.dtype} "
            f"{list(images.shape)}; scale float images to 0..255 and round them, repeat a grey "
            "channel three times"
        )
    x = resize_tf1(images.astype(jnp.float32), (SIZE, SIZE))
    outputs: Any = Inception().apply(params, (x - 128) / 128)
    return {"pool": outputs[0], "logits_unbiased": outputs[1]}


def resize_tf1(x: Array, size: tuple[int, int]) -> Array:
    """Resize as TensorFlow 1's `resize_bilinear` with `align_corners=False`.

        y[i] = x[⌊r⌋] + (r - ⌊r⌋) (x[⌊r⌋ + 1] - x[⌊r⌋]),   r = i * (size of x) / (size of y)

    along each axis. Positions are the corners of pixels, not their centres, and shrinking skips
    pixels. After the last pixel the last pixel is repeated. To the same size it is the identity.

    Args:
      x: [N, H, W, C] float32.
      size: height and width of the result.

    Returns:
      [N, *size, C] float32.
    """
    for axis, out in ((2, size[1]), (1, size[0])):
        # In float32, as in TensorFlow: if r is almost an integer, its rounding selects the pixel.
        r = np.arange(out, dtype=np.float32) * np.float32(x.shape[axis] / out)
        low = r.astype(np.int32)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        weight = np.expand_dims(r - low.astype(np.float32), [a for a in range(4) if a != axis])
        start = jnp.take(x, low, axis)
        x = start + (jnp.take(x, high, axis) - start) * weight
    return x


class BasicConv(nn.Module):
    """Convolution without bias, batch normalisation with fixed statistics, ReLU.

    Attributes:
      features: channels of the output.
      kernel: (height, width) of the kernel.
      strides: stride along H and W.
      padded: whether to pad with zeros, so that stride 1 keeps the size.
    """

    features: int
    kernel: tuple[int, int]
    strides: int = 1
    padded: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [N, H, W, C] to [N, H', W', features]."""
        padding = [(n // 2, n // 2) if self.padded else (0, 0) for n in self.kernel]
        plain: dict[str, Any] = dict(use_bias=False, precision=PRECISION, name="conv")
        x = nn.Conv(self.features, self.kernel, self.strides, padding, **plain)(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


# (x, name of a layer in the current block, arguments of BasicConv) -> y
Conv = Callable[..., Array]


def average_pool(x: Array) -> Array:
    """Average 3 x 3 pixels; at the border, only the pixels inside the image."""
    return nn.avg_pool(x, (3, 3), (1, 1), PADDED, count_include_pad=False)


def block_a(conv: Conv, x: Array, pool_features: int) -> Array:
    """Map [N, 35, 35, C] to [N, 35, 35, 224 + pool_features]."""
    narrow = conv(x, "branch1x1", 64, (1, 1))
    five = conv(x, "branch5x5_1", 48, (1, 1))
    five = conv(five, "branch5x5_2", 64, (5, 5))
    three = conv(x, "branch3x3dbl_1", 64, (1, 1))
    three = conv(three, "branch3x3dbl_2", 96, (3, 3))
    three = conv(three, "branch3x3dbl_3", 96, (3, 3))
    pool = conv(average_pool(x), "branch_pool", pool_features, (1, 1))
    return jnp.concatenate([narrow, five, three, pool], axis=-1)


def block_b(conv: Conv, x: Array) -> Array:
    """Map [N, 35, 35, C] to [N, 17, 17, C + 480]."""
    single = conv(x, "branch3x3", 384, (3, 3), 2, False)
    double = conv(x, "branch3x3dbl_1", 64, (1, 1))
    double = conv(double, "branch3x3dbl_2", 96, (3, 3))
    double = conv(double, "branch3x3dbl_3", 96, (3, 3), 2, False)
    return jnp.concatenate([single, double, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


def block_c(conv: Conv, x: Array, width: int) -> Array:
    """Map [N, 17, 17, C] to [N, 17, 17, 768]; 1 x 7 and 7 x 1 replace 7 x 7 convolutions."""
    narrow = conv(x, "branch1x1", 192, (1, 1))
    single = conv(x, "branch7x7_1", width, (1, 1))
    single = conv(single, "branch7x7_2", width, (1, 7))
    single = conv(single, "branch7x7_3", 192, (7, 1))
    double = conv(x, "branch7x7dbl_1", width, (1, 1))
    double = conv(double, "branch7x7dbl_2", width, (7, 1))
    double = conv(double, "branch7x7dbl_3", width, (1, 7))
    double = conv(double, "branch7x7dbl_4", width, (7, 1))
    double = conv(double, "branch7x7dbl_5", 192, (1, 7))
    pool = conv(average_pool(x), "branch_pool", 192, (1, 1))
    return jnp.concatenate([narrow, single, double, pool], axis=-1)


def block_d(conv: Conv, x: Array) -> Array:
    """Map [N, 17, 17, C] to [N, 8, 8, C + 512]."""
    three = conv(x, "branch3x3_1", 192, (1, 1))
    three = conv(three, "branch3x3_2", 320, (3, 3), 2, False)
    seven = conv(x, "branch7x7x3_1", 192, (1, 1))
    seven = conv(seven, "branch7x7x3_2", 192, (1, 7))
    seven = conv(seven, "branch7x7x3_3", 192, (7, 1))
    seven = conv(seven, "branch7x7x3_4", 192, (3, 3), 2, False)
    return jnp.concatenate([three, seven, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


def block_e(conv: Conv, x: Array, pooled: Array) -> Array:
    """Map [N, 8, 8, C] to [N, 8, 8, 2048]; `pooled` is x after a 3 x 3 pool."""
    narrow = conv(x, "branch1x1", 320, (1, 1))
    single = conv(x, "branch3x3_1", 384, (1, 1))
    single = [conv(single, f"branch3x3_2{n}", 384, kernel) for n, kernel in FACTORS.items()]
    double = conv(x, "branch3x3dbl_1", 448, (1, 1))
    double = conv(double, "branch3x3dbl_2", 384, (3, 3))
    double = [conv(double, f"branch3x3dbl_3{n}", 384, kernel) for n, kernel in FACTORS.items()]
    pool = conv(pooled, "branch_pool", 192, (1, 1))
    return jnp.concatenate([narrow, *single, *double, pool], axis=-1)


class Inception(nn.Module):
    """The network after the resize; its layers have the names of the PyTorch ports."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Return pool [N, 2048] and unbiased logits [N, 1008] of x [N, 299, 299, 3] in [-1, 1]."""

        def conv(x: Array, name: str, *arguments) -> Array:
            return BasicConv(*arguments, name=name)(x)

        def block(name: str) -> Conv:
            return lambda x, branch, *arguments: conv(x, f"{name}.{branch}", *arguments)

        x = conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2, False)
        x = conv(x, "Conv2d_2a_3x3", 32, (3, 3), 1, False)
        x = conv(x, "Conv2d_2b_3x3", 64, (3, 3))
        x = nn.max_pool(x, (3, 3), (2, 2))  #                                    [N, 73, 73, 64]
        x = conv(x, "Conv2d_3b_1x1", 80, (1, 1))
        x = conv(x, "Conv2d_4a_3x3", 192, (3, 3), 1, False)
        x = nn.max_pool(x, (3, 3), (2, 2))  #                                    [N, 35, 35, 192]
        x = block_a(block("Mixed_5b"), x, 32)
        x = block_a(block("Mixed_5c"), x, 64)
        x = block_a(block("Mixed_5d"), x, 64)
        x = block_b(block("Mixed_6a"), x)  #                                     [N, 17, 17, 768]
        x = block_c(block("Mixed_6b"), x, 128)
        x = block_c(block("Mixed_6c"), x, 160)
        x = block_c(block("Mixed_6d"), x, 160)
        x = block_c(block("Mixed_6e"), x, 192)
        x = block_d(block("Mixed_7a"), x)  #                                     [N, 8, 8, 1280]
        x = block_e(block("Mixed_7b"), x, average_pool(x))
        # A max pool only here: TensorFlow's graph has it, the paper does not.
        x = block_e(block("Mixed_7c"), x, nn.max_pool(x, (3, 3), (1, 1), PADDED))
        pool = x.mean(axis=(1, 2))  #                                            [N, 2048]
        return pool, nn.Dense(1008, use_bias=False, precision=PRECISION, name="fc")(pool)


def from_state(state: Mapping[str, np.ndarray]) -> Params:
    """Convert the tensors of the PyTorch ports to the parameters of this network.

    Args:
      state: float32 tensors by the names of the ports: Mixed_7c.branch_pool.conv.weight
        [out, in, h, w] and so on. The bias of the logits and the numbers of tracked batches are
        ignored.

    Raises:
      UserError: a tensor is missing, unknown, or of another shape or type; the message names it.
    """
    wanted = _shapes()
    # Each path is (collection, layer, ...).
    paths = {f"{path[1]}.{PORT_NAMES[path[2:]]}": path for path in wanted}
    found = {name for name in state if not name.endswith(UNUSED)}
    for problem, names in (("lack", paths.keys() - found), ("have unknown", found - paths.keys())):
        if names:
            raise UserError(
                f"the Inception weights {problem} {min(names)!r} and {len(names) - 1} other "
                "tensors; expected the weights of the FID, "
                "weights-inception-2015-12-05-6726825d.pth"
            )
    params = {}
    for name, path in paths.items():
        tensor, leaf = state[name], wanted[path]  # a kernel is [out, in, h, w] or [out, in]
        turned = np.moveaxis(tensor, (0, 1), (-1, -2)) if path[-1] == "kernel" else tensor
        if turned.shape != leaf.shape or tensor.dtype != np.float32:
            raise UserError(
                f"the Inception weights' {name!r} is {tensor.dtype} {tensor.shape}, but the "
                f"network of the FID has float32 {leaf.shape} (kernels in the order [h, w, in, "
                "out]); expected weights-inception-2015-12-05-6726825d.pth"
            )
        params[path] = np.ascontiguousarray(turned)
    return flax.traverse_util.unflatten_dict(params)


@functools.cache
def _shapes() -> dict[Any, Any]:
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), image)
    return flax.traverse_util.flatten_dict(shapes)
