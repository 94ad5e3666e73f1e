"""JAX's arrays are read where they lie; what is written is NumPy's."""

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
