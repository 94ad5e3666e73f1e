"""Kernels called with NumPy's arrays."""

import shutil
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest

import normforge as nf


def drawn(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def layer_norm(x, gamma, beta, eps=1e-5):
    x = x.astype(np.float64)
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + eps) * gamma + beta


@pytest.fixture(scope="module")
def norm():
    return nf.layer_norm(48)


def test_layer_norm(norm):
    for rows in (1, 3, 64):
        x, gamma, beta = drawn(rows, 48), drawn(48, seed=1), drawn(48, seed=2)
        y = norm(x=x, gamma=gamma, beta=beta)
        assert isinstance(y, np.ndarray) and y.dtype == np.float32 and y.shape == (rows, 48)
        np.testing.assert_allclose(y, layer_norm(x, gamma, beta), atol=1e-5)


def test_spec_without_phases_has_training_and_backward():
    norm = nf.compile("input: {shape: [N, 8], layout: nc}\nmode: layer\nsemantics: pytorch")
    x, gamma, beta = drawn(5, 8), drawn(8, seed=1), drawn(8, seed=2)
    results = norm.training(x=x, gamma=gamma, beta=beta)
    assert results._fields == ("y", "batch_mean", "batch_variance")
    np.testing.assert_allclose(results.y, layer_norm(x, gamma, beta), atol=1e-5)
    dy = drawn(5, 8, seed=3)
    gradients = norm.backward(
        x=x, dy=dy, gamma=gamma, batch_mean=results.batch_mean, batch_variance=results.batch_variance
    )
    np.testing.assert_allclose(gradients.dbeta, dy.sum(0), atol=1e-5)


def test_out_is_written_in_place(norm):
    x, gamma, beta = drawn(4, 48), drawn(48), drawn(48)
    y = np.full((4, 48), np.nan, np.float32)
    assert norm(x=x, gamma=gamma, beta=beta, out={"y": y}) is y
    np.testing.assert_allclose(y, layer_norm(x, gamma, beta), atol=1e-5)


def test_read_only_arrays_are_read_and_not_written(norm):
    x, gamma, beta = drawn(4, 48), drawn(48), drawn(48)
    x.flags.writeable = False
    norm(x=x, gamma=gamma, beta=beta)
    with pytest.raises(ValueError, match="'y' is read-only, and is to be written"):
        norm(x=drawn(4, 48), gamma=gamma, beta=beta, out={"y": x})


def test_strides(norm):
    gamma, beta = drawn(48), drawn(48)
    wide = drawn(4, 96)
    with pytest.raises(ValueError, match=r"'x' has the strides \(96, 2\) in elements; expected"):
        norm(x=wide[:, ::2], gamma=gamma, beta=beta)
    copying = nf.compile(norm.spec, copies=True)
    np.testing.assert_array_equal(
        copying(x=wide[:, ::2], gamma=gamma, beta=beta),
        norm(x=np.ascontiguousarray(wide[:, ::2]), gamma=gamma, beta=beta),
    )


def test_wrong_calls(norm):
    x, gamma, beta = drawn(4, 48), drawn(48), drawn(48)
    calls = [
        (TypeError, "takes x, gamma and beta; beta is missing", {"x": x, "gamma": gamma}),
        (
            TypeError,
            "there is no argument 'weight': it is called 'gamma' here",
            {"x": x, "weight": gamma, "beta": beta},
        ),
        (
            TypeError,
            "there is no argument 'gama': did you mean 'gamma'",
            {"x": x, "gama": gamma, "beta": beta},
        ),
        (
            TypeError,
            "there is no argument 'z'; expected x, gamma, beta",
            {"x": x, "gamma": gamma, "beta": beta, "z": x},
        ),
        (
            TypeError,
            "out has no 'z'; it writes y",
            {"x": x, "gamma": gamma, "beta": beta, "out": {"z": x}},
        ),
        (
            TypeError,
            "'x' is float64; expected float32",
            {"x": x.astype(np.float64), "gamma": gamma, "beta": beta},
        ),
        (TypeError, "'x' is list; expected an array", {"x": [1], "gamma": gamma, "beta": beta}),
        (
            ValueError,
            r"'x' has shape \(4, 47\); expected \(N, 48\)",
            {"x": drawn(4, 47), "gamma": gamma, "beta": beta},
        ),
        (
            ValueError,
            r"'gamma' has shape \(47,\); expected \(48,\)",
            {"x": x, "gamma": drawn(47), "beta": beta},
        ),
        (
            ValueError,
            r"out\['y'\] has shape \(3, 48\); expected \(4, 48\)",
            {"x": x, "gamma": gamma, "beta": beta, "out": {"y": drawn(3, 48)}},
        ),
    ]
    for error, text, arrays in calls:
        with pytest.raises(error, match=text):
            norm(**arrays)


def test_errors_of_specs_have_their_place():
    with pytest.raises(nf.SpecError, match=r"my\.yaml:2:1: error: unknown key 'axes'"):
        nf.compile("input: {shape: [4, 8]}\naxes: c\n", source="my.yaml")
    with pytest.raises(ValueError):
        nf.compile("{}")
    norm = nf.compile("input: {shape: [N, 8], layout: nc}\nphases: [inference]\n")
    with pytest.raises(nf.SpecError, match="phase 'training' is not one of the spec's phases"):
        norm.training


def test_numbers_given_at_the_call():
    norm = nf.batch_norm(3, layout="nc", eps=None, epsilon="argument", momentum="argument")
    x = drawn(6, 3)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    arrays = {"x": x, "gamma": ones, "beta": zeros, "moving_mean": zeros, "moving_variance": ones}
    results = norm.training(**arrays, epsilon=0.5, momentum=0.25)
    np.testing.assert_allclose(results.y, (x - x.mean(0)) / np.sqrt(x.var(0) + 0.5), atol=1e-5)
    np.testing.assert_allclose(results.moving_mean, 0.25 * x.mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="epsilon"):
        norm.training(**arrays, epsilon=-1.0, momentum=0.25)
    with pytest.raises(TypeError, match="momentum is missing"):
        norm.training(**arrays, epsilon=0.5)


def test_state_in_place():
    norm = nf.batch_norm(3, layout="nc")
    x = drawn(6, 3)
    mean, variance = np.zeros(3, np.float32), np.ones(3, np.float32)
    norm.training(
        x=x,
        gamma=np.ones(3, np.float32),
        beta=np.zeros(3, np.float32),
        moving_mean=mean,
        moving_variance=variance,
        out={"moving_mean": mean, "moving_variance": variance},
    )
    np.testing.assert_allclose(mean, 0.1 * x.mean(0), atol=1e-6)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_dtypes(name):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    short = {"float16": "f16", "bfloat16": "bf16", "float64": "f64"}[name]
    norm = nf.layer_norm(32, dtype=short)
    parameter = np.float64 if name == "float64" else np.float32
    x = drawn(7, 32).astype(dtype)
    y = norm(x=x, gamma=np.ones(32, parameter), beta=np.zeros(32, parameter))
    assert y.dtype == dtype
    expected = layer_norm(x, 1, 0)
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2, "float64": 1e-12}[name]
    np.testing.assert_allclose(y.astype(np.float64), expected, atol=tolerance)


def test_masks_are_bytes():
    norm = nf.layer_norm(48, fuse=["relu"], phases=["training", "backward"])
    x, gamma, beta = drawn(5, 48), drawn(48), drawn(48)
    results = norm.training(x=x, gamma=gamma, beta=beta)
    masks = {n: getattr(results, n) for n in results._fields if n in norm.backward.reads}
    given = {"x": x, "dy": drawn(5, 48), "gamma": gamma, "beta": beta, **masks}
    arrays = {name: array for name, array in given.items() if name in norm.backward.reads}
    assert norm.backward(**arrays).dx.shape == (5, 48)


def test_many_shapes_and_threads(norm):
    gamma, beta = drawn(48), drawn(48)
    wrong = []

    def work(seed):
        for rows in np.random.default_rng(seed).integers(1, 400, 100):
            x = drawn(rows, 48, seed=seed)
            y = norm(x=x, gamma=gamma, beta=beta)
            if not np.allclose(y, layer_norm(x, gamma, beta), atol=1e-4):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_a_kernel_says_of_itself(norm):
    assert norm.phase == "inference"
    assert norm.reads == ["x", "gamma", "beta"] and norm.writes == ["y"]
    assert norm.arguments[0] == {
        "name": "x",
        "dtype": "float32",
        "shape": "(N, 48)",
        "role": "data",
        "written": False,
    }
    assert norm.scalars == [] and norm.cpu
    assert all(schedule and reason for schedule, reason in norm.schedules)
    assert "layer_norm: inference of x, gamma, beta gives y" in repr(norm)
    assert isinstance(norm.save(), bytes)


def test_missing_compiler(tmp_path):
    engine = nf.Engine(compiler_library=str(tmp_path / "none.so"), cache_directory="")
    with pytest.raises(nf.CompilerNotFound, match="none.so"):
        nf.compile("input: {shape: [4, 8]}\n", engine=engine)


def test_packs(tmp_path):
    """A pack that `normforge pack` made, without any compiler."""
    command = shutil.which("normforge")
    if not command:
        pytest.skip("the command normforge, which makes packs, is not here")
    (tmp_path / "rows.yaml").write_text(
        "name: layer1.0.norm\ninput: {shape: [N, 48], layout: nc}\nmode: layer\nsemantics: pytorch\n"
        "phases: [inference, training]\n"
    )
    path = tmp_path / "rows.nfk"
    subprocess.run([command, "pack", tmp_path / "rows.yaml", "-o", path], check=True)
    engine = nf.Engine(compiler_library=str(tmp_path / "none.so"), cache_directory="")
    pack = nf.Pack(path, engine=engine)
    assert sorted(pack.kernels) == [("layer1.0.norm", "inference"), ("layer1.0.norm", "training")]
    assert list(pack) == ["layer1.0.norm"] and "layer1.0.norm" in pack and "others" not in pack
    x, gamma, beta = drawn(4, 48), drawn(48), drawn(48)
    y = pack["layer1.0.norm"](x=x, gamma=gamma, beta=beta)
    np.testing.assert_allclose(y, layer_norm(x, gamma, beta), atol=1e-5)
    trained = pack["layer1.0.norm"].training(x=x, gamma=gamma, beta=beta)
    np.testing.assert_array_equal(trained.y, y)
    with pytest.raises(nf.NotInPack, match="the pack has no 'others'; it has layer1.0.norm"):
        pack["others"]
    assert not hasattr(pack["layer1.0.norm"], "backward")


def test_phases_that_there_are_not(norm):
    assert hasattr(norm, "backward") and not hasattr(norm, "update")
    with pytest.raises(nf.PhaseError, match="phase 'update' is not one of the spec's phases"):
        norm.update
    with pytest.raises(nf.SpecError):
        norm.phase_kernel("update")


def test_kernels_are_saved_and_loaded(norm):
    engine = nf.Engine(compiler_library="/nowhere.so", cache_directory="")
    kernel = engine.load(norm.save())
    x, gamma, beta = drawn(4, 48), drawn(48), drawn(48)
    del engine
    np.testing.assert_array_equal(
        kernel(x=x, gamma=gamma, beta=beta), norm(x=x, gamma=gamma, beta=beta)
    )
    with pytest.raises(nf.InternalError, match="artifact"):
        nf.Engine().load(norm.save()[:100])


def test_out_is_a_mapping(norm):
    arrays = {"x": drawn(4, 48), "gamma": drawn(48), "beta": drawn(48)}
    norm(**arrays, out=None)
    with pytest.raises(TypeError, match="out is ndarray; expected a dict of arrays by their names"):
        norm(**arrays, out=drawn(4, 48))


def test_specs_of_files_and_options(tmp_path):
    (tmp_path / "rows.yaml").write_text("input: {shape: [N, 8], layout: nc}\nmode: layer\n")
    assert nf.compile(tmp_path / "rows.yaml").name == "rows"
    (tmp_path / "wrong.yaml").write_text("inputs: 1\n")
    with pytest.raises(nf.SpecError, match=r"wrong\.yaml:1:1"):
        nf.compile(tmp_path / "wrong.yaml")
    assert "relu" in nf.layer_norm(8, fuse="relu", engine=nf.Engine(nf._compiler_library())).spec
    assert nf.layer_norm(8, eps=np.float32(0.5)).spec.count("epsilon: 0.5") == 1
    assert nf.batch_norm(8, momentum=None).training.scalars == ["count"]


def test_plans_of_many_shapes_in_many_threads():
    """Plans are thrown away while others compute with them."""
    norm = nf.layer_norm(16, dtype="bf16", parameter_dtype="bf16").training
    bf16 = ml_dtypes.bfloat16
    gamma, beta = np.ones(16, bf16), np.zeros(16, bf16)
    wrong = []

    def work(seed):
        for rows in np.random.default_rng(seed).integers(1, 2000, 600):
            y = norm(x=drawn(rows, 16, seed=seed).astype(bf16), gamma=gamma, beta=beta).y
            if y.shape != (rows, 16):
                wrong.append(rows)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert not wrong


def test_arrays_that_only_look_like_numpys(norm):
    fake = type("ndarray", (), {"__module__": "numpy"})()
    with pytest.raises(TypeError, match="'x' is ndarray; expected an array"):
        norm(x=fake, gamma=drawn(48), beta=drawn(48))


def test_names_of_python_and_positional_arrays(norm):
    with pytest.raises(TypeError, match="arrays are given by their names: x, gamma and beta"):
        norm(drawn(4, 48))
    with pytest.raises(TypeError, match="takes x, gamma and beta, 3 arrays, and 0 numbers; 1"):
        norm.apply([drawn(4, 48)])
    with pytest.raises(TypeError, match="out has 2 arrays; it writes y"):
        norm.apply([drawn(4, 48), drawn(48), drawn(48)], [], [None, None])


def test_big_endian_and_other_types(norm):
    gamma, beta = drawn(48), drawn(48)
    for x, found in (
        (drawn(4, 48).astype(">f4"), "ndarray of >f4"),
        (drawn(4, 48).astype(np.int32), "int32"),
        (drawn(4, 48).astype(np.complex64), "complex64"),
    ):
        with pytest.raises(TypeError, match=f"'x' is {found}; expected"):
            norm(x=x, gamma=gamma, beta=beta)


def test_subclasses_and_buffers(norm):
    x, gamma, beta = drawn(4, 48), drawn(48), drawn(48)
    y = norm(x=x, gamma=gamma, beta=beta)
    np.testing.assert_array_equal(norm(x=x.view(np.matrix), gamma=gamma, beta=beta), y)
    np.testing.assert_array_equal(norm(x=memoryview(x), gamma=gamma, beta=beta), y)


def test_empty_batch(norm):
    assert norm(x=drawn(0, 48), gamma=drawn(48), beta=drawn(48)).shape == (0, 48)


def test_explain_and_check():
    if not shutil.which("normforge"):
        pytest.skip("the command normforge is not here")
    norm = nf.batch_norm(5, layout="nc", momentum="argument")
    text = norm.explain("training", N=7)
    assert "training, mode feature" in text and "(N, 5) = (7, 5)" in text
    ones, zeros = np.ones(5, np.float32), np.zeros(5, np.float32)
    x = drawn(7, 5)
    arrays = {"x": x, "gamma": ones, "beta": zeros, "moving_mean": zeros, "moving_variance": ones}
    made = norm.training(**arrays, momentum=0.5)
    report = norm.check(
        "training",
        results={"y": made.y, "moving_mean": made.moving_mean},
        **arrays,
        momentum=0.5,
    )
    assert report and "y.npy: y is off by" in str(report) and "1 of 1 agree" in str(report)
    wrong = made.y.copy()
    wrong[2, 3] += 0.01
    report = norm.check("training", results={"y": wrong}, **arrays, momentum=0.5)
    assert not report and "element 13 is" in str(report)
    with pytest.raises(nf.ArgumentError, match="needs gamma"):
        norm.check("training", x=x, momentum=0.5)
    with pytest.raises(nf.CompilerNotFound, match="is not on PATH"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", "/nowhere")
            norm.explain()


def test_specs_that_are_no_text():
    with pytest.raises(TypeError, match="spec is dict; expected YAML text, or a pathlib.Path"):
        nf.compile({"input": 1})
    with pytest.raises(nf.SpecError, match="'a.yaml' is the name of a file; pass pathlib.Path"):
        nf.compile("a.yaml")


def test_all_foreign_names_are_told_at_once():
    with pytest.raises(TypeError) as error:
        nf.layer_norm(8)(input=1, weight=2, betta=3)
    assert str(error.value).splitlines() == [
        "there is no argument 'input': it is called 'x' here",
        "there is no argument 'weight': it is called 'gamma' here",
        "there is no argument 'betta': did you mean 'beta'?",
    ]


def test_the_reason_of_an_array_is_told():
    class Broken:
        def __dlpack__(self, **options):
            raise BufferError("it lies elsewhere")

        def __dlpack_device__(self):
            return (1, 0)

        dtype = "float32"

    with pytest.raises(TypeError, match="'x' is .*Broken of float32; expected float32: it lies elsewhere"):
        nf.layer_norm(8)(x=Broken(), gamma=np.ones(8, np.float32), beta=np.ones(8, np.float32))
