"""The Inception-v3 by which the FID is measured (Szegedy et al. 2015; Heusel et al. 2017).

The network of TensorFlow's `inception-2015-12-05`, as PyTorch's ports know it, whose names the
parameters bear. It is not the Inception of torchvision or Keras:

- images are resized by TensorFlow 1's bilinear rule, without half-pixel centres and antialiasing;
- average pools beside the convolutions divide by the number of pixels inside the image;
- the last block pools by the maximum where its twin before it takes the average;
- of the 1008 logits the Inception score (Salimans et al. 2016) takes no bias.

Features move with the precision: convolutions run in float32 with `Precision.HIGHEST`, as
accelerators would otherwise round their inputs (TPUs to bfloat16, NVIDIA's cards to TF32).
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

SIZE = 299
PADDED: Any = ((1, 1), (1, 1))  # Flax takes it, though its annotation says str
PRECISION = jax.lax.Precision.HIGHEST
FACTORS = {"a": (1, 3), "b": (3, 1)}  # side by side in block e
THEIRS = {  # our leaves in a layer -> the ports' names
    ("conv", "kernel"): "conv.weight",
    ("bn", "scale"): "bn.weight",
    ("bn", "bias"): "bn.bias",
    ("bn", "mean"): "bn.running_mean",
    ("bn", "var"): "bn.running_var",
    ("kernel",): "weight",
}
UNUSED = (".num_batches_tracked", "fc.bias")  # ends of names


def inception_features(params: Params, images: Array) -> dict[str, Array]:
    """Return what the FID and its kin are measured on.

    Args:
      params: of `from_state`.
      images: uint8 [N, H, W, 3], RGB; of any size, resized to 299 x 299.

    Returns:
      "pool": float32 [N, 2048], the mean of the last feature map over its 8 x 8 places.
      "logits_unbiased": float32 [N, 1008], logits of the classes without their bias.

    Raises:
      UserError: the images are of another type or shape.
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"Inception takes images of uint8 [N, H, W, 3], found {images.dtype} "
            f"{list(images.shape)}; scale to 0..255 and round, and repeat a single channel"
        )
    x = resize_tf1(images.astype(jnp.float32), (SIZE, SIZE))
    outputs: Any = Inception().apply(params, (x - 128) / 128)
    return {"pool": outputs[0], "logits_unbiased": outputs[1]}


def resize_tf1(x: Array, size: tuple[int, int]) -> Array:
    """Resize as TensorFlow 1's `resize_bilinear` with `align_corners=False`.

        out[i] = x[⌊r⌋] + (r - ⌊r⌋) (x[⌊r⌋ + 1] - x[⌊r⌋]),   r = i in / out

    per axis: places are corners, not centres, of pixels, and shrinking skips pixels. Behind the
    last pixel comes itself. Of the same size it is the identity.

    Args:
      x: [N, H, W, C] float32.
      size: height and width of the result.

    Returns:
      [N, *size, C] float32.
    """
    for axis, out in ((2, size[1]), (1, size[0])):
        # In float32, as TensorFlow does it: where r is all but an integer, rounding picks the pixel
        r = np.arange(out, dtype=np.float32) * np.float32(x.shape[axis] / out)
        low = r.astype(np.int32)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        weight = np.expand_dims(r - low.astype(np.float32), [a for a in range(4) if a != axis])
        start = jnp.take(x, low, axis)
        x = start + (jnp.take(x, high, axis) - start) * weight
    return x


class BasicConv(nn.Module):
    """Convolution without bias, normalisation by fixed statistics, ReLU."""

    features: int
    kernel: tuple[int, int]
    strides: int = 1
    padded: bool = True  # with zeros, so that the size stays

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [N, H, W, C] to [N, H', W', features]."""
        padding = [(n // 2, n // 2) if self.padded else (0, 0) for n in self.kernel]
        plain: dict[str, Any] = dict(use_bias=False, precision=PRECISION, name="conv")
        x = nn.Conv(self.features, self.kernel, self.strides, padding, **plain)(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


Conv = Callable[..., Array]  # (x, name, arguments of BasicConv) -> y, in the block at hand


def average_pool(x: Array) -> Array:
    """3 x 3; at the border the mean of those pixels that are there."""
    return nn.avg_pool(x, (3, 3), (1, 1), PADDED, count_include_pad=False)


def block_a(conv: Conv, x: Array, pool_features: int) -> Array:
    """35 x 35: to 224 + pool_features channels."""
    narrow = conv(x, "branch1x1", 64, (1, 1))
    five = conv(x, "branch5x5_1", 48, (1, 1))
    five = conv(five, "branch5x5_2", 64, (5, 5))
    three = conv(x, "branch3x3dbl_1", 64, (1, 1))
    three = conv(three, "branch3x3dbl_2", 96, (3, 3))
    three = conv(three, "branch3x3dbl_3", 96, (3, 3))
    pool = conv(average_pool(x), "branch_pool", pool_features, (1, 1))
    return jnp.concatenate([narrow, five, three, pool], axis=-1)


def block_b(conv: Conv, x: Array) -> Array:
    """35 x 35 to 17 x 17: 480 channels more."""
    single = conv(x, "branch3x3", 384, (3, 3), 2, False)
    double = conv(x, "branch3x3dbl_1", 64, (1, 1))
    double = conv(double, "branch3x3dbl_2", 96, (3, 3))
    double = conv(double, "branch3x3dbl_3", 96, (3, 3), 2, False)
    return jnp.concatenate([single, double, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


def block_c(conv: Conv, x: Array, width: int) -> Array:
    """17 x 17: to 768 channels; 7 x 7 convolutions in two factors."""
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
    """17 x 17 to 8 x 8: 512 channels more."""
    three = conv(x, "branch3x3_1", 192, (1, 1))
    three = conv(three, "branch3x3_2", 320, (3, 3), 2, False)
    seven = conv(x, "branch7x7x3_1", 192, (1, 1))
    seven = conv(seven, "branch7x7x3_2", 192, (1, 7))
    seven = conv(seven, "branch7x7x3_3", 192, (7, 1))
    seven = conv(seven, "branch7x7x3_4", 192, (3, 3), 2, False)
    return jnp.concatenate([three, seven, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


def block_e(conv: Conv, x: Array, pooled: Array) -> Array:
    """8 x 8: to 2048 channels; `pooled` is x, pooled 3 x 3."""
    narrow = conv(x, "branch1x1", 320, (1, 1))
    single = conv(x, "branch3x3_1", 384, (1, 1))
    single = [conv(single, f"branch3x3_2{n}", 384, kernel) for n, kernel in FACTORS.items()]
    double = conv(x, "branch3x3dbl_1", 448, (1, 1))
    double = conv(double, "branch3x3dbl_2", 384, (3, 3))
    double = [conv(double, f"branch3x3dbl_3{n}", 384, kernel) for n, kernel in FACTORS.items()]
    pool = conv(pooled, "branch_pool", 192, (1, 1))
    return jnp.concatenate([narrow, *single, *double, pool], axis=-1)


class Inception(nn.Module):
    """The network from resized images on; its layers bear the names of PyTorch's ports."""

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
        # By the maximum here alone: TensorFlow's graph has it so, the paper does not
        x = block_e(block("Mixed_7c"), x, nn.max_pool(x, (3, 3), (1, 1), PADDED))
        pool = x.mean(axis=(1, 2))  #                                            [N, 2048]
        return pool, nn.Dense(1008, use_bias=False, precision=PRECISION, name="fc")(pool)


def from_state(state: Mapping[str, np.ndarray]) -> Params:
    """Return the tensors of PyTorch's ports as the parameters of this network.

    Args:
      state: float32 tensors by the ports' names: Mixed_7c.branch_pool.conv.weight [out, in, h, w]
        and so on. The bias of the logits and numbers of tracked batches are not looked at.

    Raises:
      UserError: a tensor, which is named, is missing, unknown, or of another shape or type.
    """
    wanted = _shapes()
    paths = {f"{path[1]}.{THEIRS[path[2:]]}": path for path in wanted}  # (collection, layer, ...)
    found = {name for name in state if not name.endswith(UNUSED)}
    for problem, names in (("lack", paths.keys() - found), ("have unknown", found - paths.keys())):
        if names:
            raise UserError(
                f"the Inception weights {problem} {min(names)!r} and {len(names) - 1} others; "
                "expected those of the FID, weights-inception-2015-12-05-6726825d.pth"
            )
    params = {}
    for name, path in paths.items():
        tensor, leaf = state[name], wanted[path]  # kernels: [out, in, h, w], [out, in]
        turned = np.moveaxis(tensor, (0, 1), (-1, -2)) if path[-1] == "kernel" else tensor
        if turned.shape != leaf.shape or tensor.dtype != np.float32:
            raise UserError(
                f"the Inception weights' {name!r} is {tensor.dtype} {tensor.shape}, where the "
                f"FID's network has float32, with the axes in our order {leaf.shape}"
            )
        params[path] = np.ascontiguousarray(turned)
    return flax.traverse_util.unflatten_dict(params)


@functools.cache
def _shapes() -> dict[Any, Any]:
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), image)
    return flax.traverse_util.flatten_dict(shapes)
