"""JAX's arrays are read where they lie; what is written is NumPy's."""

import functools

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import normforge as nf  # noqa: E402


def test_arrays_of_jax():
    norm = nf.layer_norm(48)
    x = jax.numpy.arange(4 * 48, dtype=jax.numpy.float32).reshape(4, 48)
    y = norm(x=x, gamma=jax.numpy.ones(48), beta=jax.numpy.zeros(48))
    expected = (np.asarray(x) - np.asarray(x).mean(1, keepdims=True)) / np.asarray(x).std(
        1, keepdims=True
    )
    np.testing.assert_allclose(np.asarray(y), expected, atol=1e-5)
    with pytest.raises(ValueError, match="'y' is an array of JAX, which cannot be written"):
        norm(
            x=x,
            gamma=jax.numpy.ones(48),
            beta=jax.numpy.zeros(48),
            out={"y": jax.numpy.zeros((4, 48))},
        )


nfj = pytest.importorskip("normforge.jax")
jnp = jax.numpy


def reference(x, gamma, beta, axes, eps, has_mean=True):
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes, keepdims=True) if has_mean else 0
    spread = jnp.square(wide - mean).mean(axes, keepdims=True)
    return (wide - mean) / jnp.sqrt(spread + eps) * gamma + beta


def drawn(*shape, dtype=jnp.float32, seed=0):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("mode", ["layer", "rms"])
def test_rows_and_gradients(mode, dtype):
    x, gamma, beta = drawn(3, 5, 48, dtype=dtype), drawn(48, seed=1), drawn(48, seed=2)
    ours = nfj.layer_norm if mode == "layer" else nfj.rms_norm
    weights = drawn(3, 5, 48, seed=3)

    def loss(of):
        return lambda *arrays: (of(*arrays).astype(jnp.float32) * weights).sum()

    def theirs(x, gamma, beta):
        return reference(x, gamma, beta, -1, 1e-5, mode == "layer")

    def mine(x, gamma, beta):
        return ours(x, gamma, beta, eps=1e-5)

    tolerance = 2e-5 if dtype == jnp.float32 else 5e-2
    y = jax.jit(mine)(x, gamma, beta)
    assert y.dtype == dtype and y.shape == x.shape
    np.testing.assert_allclose(y.astype(np.float32), theirs(x, gamma, beta), atol=tolerance)
    expected = jax.grad(loss(theirs), (0, 1, 2))(x, gamma, beta)
    for found in (
        jax.grad(loss(mine), (0, 1, 2))(x, gamma, beta),
        jax.jit(jax.grad(loss(mine), (0, 1, 2)))(x, gamma, beta),
    ):
        for one, other in zip(found, expected):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(
                one.astype(np.float32), other.astype(np.float32), atol=10 * tolerance, rtol=tolerance
            )


def test_fused_steps_and_no_parameters():
    x, addend = drawn(4, 48), drawn(4, 48, seed=1)
    y = nfj.layer_norm(x, addend=addend, fuse="relu")
    expected = jnp.maximum(reference(x, 1, 0, -1, 1e-5) + addend, 0)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    gradient = jax.grad(lambda x, a: nfj.layer_norm(x, addend=a, fuse="relu").sum(), (0, 1))
    wanted = jax.grad(
        lambda x, a: jnp.maximum(reference(x, 1, 0, -1, 1e-5) + a, 0).sum(), (0, 1)
    )
    for one, other in zip(gradient(x, addend), wanted(x, addend)):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_groups_and_instances():
    x, gamma, beta = drawn(2, 6, 5, 8), drawn(8, seed=1), drawn(8, seed=2)
    found = nfj.instance_norm(x, gamma, beta)
    np.testing.assert_allclose(found, reference(x, gamma, beta, (1, 2), 1e-5), atol=1e-5)
    grouped = x.reshape(2, 6, 5, 4, 2)
    expected = reference(grouped, 1, 0, (1, 2, 4), 1e-5).reshape(x.shape) * gamma + beta
    np.testing.assert_allclose(nfj.group_norm(x, 4, gamma, beta), expected, atol=1e-5)
    with pytest.raises(ValueError, match="layout 'nchwd' of x of 4 axes"):
        nfj.group_norm(x, 4, layout="nchwd")


def test_vmap_and_any_phase():
    x, gamma, beta = drawn(3, 4, 48), drawn(48, seed=1), drawn(48, seed=2)
    found = jax.vmap(lambda x: nfj.layer_norm(x, gamma, beta))(x)
    np.testing.assert_allclose(found, reference(x, gamma, beta, -1, 1e-5), atol=1e-5)
    spec = "input: {shape: [N, 8], layout: nc}\nsemantics: pytorch\nmomentum: argument\nphases: [training]\n"
    x = drawn(16, 8)
    made = nfj.apply(
        spec, x=x, gamma=jnp.ones(8), beta=jnp.zeros(8), moving_mean=jnp.zeros(8),
        moving_variance=jnp.ones(8), momentum=0.25,
    )  # fmt: skip
    np.testing.assert_allclose(made["moving_mean"], 0.25 * x.mean(0), atol=1e-5)
    with pytest.raises(TypeError, match="momentum is not among them or is missing"):
        nfj.apply(
            spec, x=x, gamma=jnp.ones(8), beta=jnp.zeros(8), moving_mean=jnp.zeros(8),
            moving_variance=jnp.ones(8),
        )  # fmt: skip


def test_what_is_refused():
    with pytest.raises(TypeError, match="arrays are int32"):
        nfj.layer_norm(jnp.zeros((2, 8), jnp.int32))
    with pytest.raises(TypeError, match="this spec takes x, gamma, beta; beta is not among them"):
        nfj.norm("mode: layer\ninput: {shape: [N, 8]}\n", x=drawn(2, 8), gamma=drawn(8))
    with pytest.raises(TypeError, match="this spec takes moving_mean, moving_variance: its statistics"):
        nfj.norm("input: {shape: [N, 8]}\n", x=drawn(2, 8))
    spec = "semantics: pytorch\nmode: layer\ninput: {shape: [N, 64]}\nfuse: [add, relu]\nphases: [training, backward]\n"
    x, one = drawn(8, 64), jnp.ones(64)
    made = nfj.apply(spec, "training", x=x, gamma=one, beta=one, addend=x)
    with pytest.raises(ValueError, match="'relu_mask' has another size than its spec says"):
        nfj.apply(
            spec, "backward", dy=x, x=x, gamma=one, relu_mask=made["relu_mask"][:4],
            batch_mean=made["batch_mean"], batch_variance=made["batch_variance"],
        )  # fmt: skip


def test_a_layout_without_samples_is_one_sample():
    x, gamma, beta = drawn(3, 6, 5, 8), drawn(8, seed=1), drawn(8, seed=2)
    for norm in (functools.partial(nfj.group_norm, groups=4), nfj.instance_norm):
        of = functools.partial(norm, gamma=gamma, beta=beta)
        found = jax.vmap(lambda x, a: of(x, layout="hwc", addend=a))(x, x)
        np.testing.assert_allclose(found, of(x, addend=x), atol=1e-6)


def test_arguments_are_checked_when_traced():
    x, gamma = drawn(4, 48), drawn(48)
    with pytest.raises(nf.Error, match="gamma"):
        jax.eval_shape(nfj.layer_norm, x, gamma[:7])
    with pytest.raises(nf.Error, match="gamma"):
        jax.jit(nfj.layer_norm).lower(x, gamma[:7])
    with pytest.raises(TypeError, match="'beta' is float32; expected bfloat16"):
        nfj.layer_norm(x, gamma.astype(jnp.bfloat16), gamma)
    with pytest.raises(TypeError, match="'addend' is float32; expected bfloat16"):
        nfj.layer_norm(x.astype(jnp.bfloat16), addend=x)
    with pytest.raises(ValueError, match=r"addend has shape \(48,\); expected that of x, \(4, 48\)"):
        nfj.layer_norm(x, addend=gamma)
    for wrong in (jnp.float32(3), x[:, :0]):
        with pytest.raises(ValueError, match="expected a last axis, with elements"):
            nfj.layer_norm(wrong)
    with pytest.raises(TypeError, match=r"groups is .*; expected a number: group_norm\(x, groups"):
        nfj.group_norm(x, gamma, gamma, layout="nc")
    with pytest.raises(TypeError, match="'epsilon' is no option: it is called eps here"):
        nfj.layer_norm(x, epsilon=1e-3)
    for key in ("axis", "layout", "phases", "mode", "semantics"):
        with pytest.raises(TypeError, match=f"'{key}' is no option"):
            nfj.rms_norm(x, **{key: 1}) if key != "mode" else nfj.layer_norm(x, mode="rms")


def test_numpy_arrays_are_taken_as_jax_takes_them():
    x = np.random.default_rng(0).normal(size=(4, 48))
    found = nfj.layer_norm(x, np.ones(48), np.zeros(48))
    assert found.dtype == jnp.asarray(x).dtype
    np.testing.assert_allclose(found, reference(jnp.asarray(x), 1, 0, -1, 1e-5), atol=1e-5)
    assert nfj.layer_norm([[1.0, 3.0]]).shape == (1, 2)
    assert nfj.group_norm(x.reshape(1, 4, 6, 8), 2, layout="NHWC").shape == (1, 4, 6, 8)


def test_options_are_keys_of_a_spec():
    x = drawn(4, 48)
    found = nfj.layer_norm(x, fuse=[{"leaky_relu": 0.1}])
    expected = reference(x, 1, 0, -1, 1e-5)
    np.testing.assert_allclose(found, jnp.where(expected > 0, expected, 0.1 * expected), atol=1e-5)
