"""Write neural_tangents_kernels.npz: kernels of infinite width by an independent implementation, neural-tangents 0.6.5.

Run once, in an environment of its own (it needs old numerical packages):

    python -m venv env && env/bin/pip install "jax==0.4.25" "jaxlib==0.4.25" "numpy<2" "scipy<1.13" \
        tensorflow-cpu tf2jax frozendict && env/bin/pip install --no-deps "neural-tangents==0.6.5"
    env/bin/python tests/data/make_neural_tangents.py

Every network has sigma_w = 1.3 and sigma_b = 0.2. Convolutions are 3 x 3 with zero padding, as in sgdsde.networks.
"""

from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import neural_tangents as nt  # noqa: E402
import numpy as np  # noqa: E402
from neural_tangents import stax  # noqa: E402

W, B = 1.3, 0.2
PHI = {
    "relu": stax.Relu(),
    "leaky_relu": stax.LeakyRelu(0.01),
    "erf": stax.Erf(),
    "gelu": stax.Gelu(),
    "sin": stax.Sin(),
}


def dense():
    return stax.Dense(8, W_std=W, b_std=B, parameterization="ntk")


def conv():
    return stax.Conv(8, (3, 3), padding="SAME", W_std=W, b_std=B, parameterization="ntk")


def mlp(phi, depth):
    layers = [dense()]
    for _ in range(depth - 1):
        layers += [PHI[phi], dense()]
    return stax.serial(*layers, PHI[phi], dense())


def multiply(scale):
    """A layer that multiplies by a constant: a linear layer's kernel function acts on covariance and tangent kernel."""

    def init_fn(rng, input_shape):
        return input_shape, ()

    def apply_fn(params, inputs, **kwargs):
        return scale * inputs

    @nt._src.stax.requirements.layer
    @nt._src.stax.requirements.supports_masking(remask_kernel=False)
    def layer():
        def kernel_fn(k, **kwargs):
            return k * scale

        return init_fn, apply_fn, kernel_fn

    return layer()


def resnet(phi, scales, affine=dense, read=()):
    layers = [affine()]
    for scale in scales:
        branch = [PHI[phi], affine()] + ([multiply(scale)] if scale != 1 else [])
        layers += [stax.FanOut(2), stax.parallel(stax.Identity(), stax.serial(*branch)), stax.FanInSum()]
    return stax.serial(*layers, PHI[phi], *read, dense())


def cnn(phi, depth, read):
    layers = [conv()]
    for _ in range(depth - 1):
        layers += [PHI[phi], conv()]
    return stax.serial(*layers, PHI[phi], read, dense())


def main():
    rng = np.random.default_rng(0)
    x1, x2 = rng.normal(size=(4, 6)), rng.normal(size=(3, 6)) * 1.7
    images_1, images_2 = rng.normal(size=(3, 5, 5, 2)), rng.normal(size=(2, 5, 5, 2)) * 0.8
    arrays = {"x1": x1, "x2": x2, "images1": images_1.transpose(0, 3, 1, 2), "images2": images_2.transpose(0, 3, 1, 2)}

    def put(name, network, a, b):
        result = network[2](a, b, ("nngp", "ntk"))
        arrays[f"{name}/nngp"], arrays[f"{name}/ntk"] = np.asarray(result.nngp), np.asarray(result.ntk)

    for phi in PHI:
        for depth in (1, 3, 10):
            put(f"MLP/{phi}/{depth}", mlp(phi, depth), x1, x2)
    put("ResNet/relu/none", resnet("relu", [1.0] * 3), x1, x2)
    put("ResNet/erf/none", resnet("erf", [1.0] * 3), x1, x2)
    put("ResNet/relu/stable", resnet("relu", [4**-0.5] * 3), x1, x2)
    put("ResNet/erf/decreasing", resnet("erf", [layer**-0.5 for layer in (2, 3, 4)]), x1, x2)
    for phi in ("relu", "erf"):
        put(f"CNN/{phi}/flatten", cnn(phi, 3, stax.Flatten()), images_1, images_2)
        put(f"CNN/{phi}/pool", cnn(phi, 3, stax.GlobalAvgPool()), images_1, images_2)
        put(f"ConvResNet/{phi}/flatten", resnet(phi, [1.0] * 2, conv, (stax.Flatten(),)), images_1, images_2)
        put(f"ConvResNet/{phi}/pool", resnet(phi, [1.0] * 2, conv, (stax.GlobalAvgPool(),)), images_1, images_2)
    path = Path(__file__).with_name("neural_tangents_kernels.npz")
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main()
